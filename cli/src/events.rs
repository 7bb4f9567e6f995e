//! `tandem get events`: what happened, to one object or to all.

use anyhow::Result;
use jiff::Timestamp;
use serde_json::Value;
use tandem_control_api::ObjectRef;

use crate::connection::Connection;
use crate::object::{Kind, Target, Usage, name, text};
use crate::output::{Format, for_programs, write};
use crate::span::since;
use crate::table::plain;

/// Prints the events of the objects that `words` name: KIND, KIND/NAME, or none for all.
pub(crate) async fn run(
    mut connection: Connection,
    words: &[String],
    everywhere: bool,
    format: Format,
) -> Result<()> {
    let (kinds, one) = if words.is_empty() {
        (Kind::ALL.to_vec(), None)
    } else {
        let target = Target::from_words(words);
        let (kind, name) = target.parse()?;
        (vec![kind], name.map(str::to_owned))
    };
    let mut events = Vec::new();
    for kind in kinds {
        let references = match &one {
            Some(name) => vec![connection.reference(kind, name)],
            None => all(&mut connection, kind, everywhere).await?,
        };
        for reference in references {
            events.extend(connection.events(kind, reference).await?);
        }
    }
    events.sort_by(|a, b| text(a, &["lastTimestamp"]).cmp(text(b, &["lastTimestamp"])));
    if !format.is_table() {
        return write(&for_programs(&events, false, format, |event| text(event, &["object"]).to_owned())?);
    }
    if events.is_empty() {
        eprintln!("Nothing has happened yet.");
        return Ok(());
    }
    write(&table(&events, one.is_none(), Timestamp::now()))
}

async fn all(connection: &mut Connection, kind: Kind, everywhere: bool) -> Result<Vec<ObjectRef>> {
    let objects = connection.list(kind, everywhere).await?;
    let reference = |object: &Value| ObjectRef {
        kind: kind.name().to_owned(),
        namespace: text(object, &["metadata", "namespace"]).to_owned(),
        name: name(object).to_owned(),
    };
    Ok(objects.iter().map(reference).collect())
}

/// What to do instead of watching events, of which the operator sends no changes.
pub(crate) fn refuse_watch() -> Usage {
    Usage("events can't be watched: watch the object (`tandem get infd -w`), or ask again".to_owned())
}

/// Events as people read them; with a column of objects where there may be several.
pub(crate) fn table(events: &[Value], several: bool, now: Timestamp) -> String {
    let rows = events.iter().map(|event| {
        let age = text(event, &["lastTimestamp"]).parse();
        let mut age = age.map_or_else(|_| "-".to_owned(), |then| since(then, now));
        if let Some(count) = event["count"].as_u64().filter(|count| *count > 1) {
            age += &format!(" (x{count})");
        }
        let keys = ["type", "reason", "object", "message"].iter().filter(|key| several || **key != "object");
        [age].into_iter().chain(keys.map(|key| text(event, &[key]).to_owned())).collect()
    });
    let titles = ["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"];
    let titles: Vec<&str> = titles.into_iter().filter(|title| several || *title != "OBJECT").collect();
    plain(&titles, rows)
}
