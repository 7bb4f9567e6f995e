//! `tandem admins`: who may ask this cluster for anything.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_control_api::{AdminSummary, CertifyRequest, ListAdminsRequest, RevokeRequest, Role};
use tandem_pki::{Credentials, Identity, KeyAndRequest};

use crate::config;
use crate::connection::Connection;
use crate::object::text;
use crate::output::{Format, for_programs, write};
use crate::span::since;
use crate::table::plain;

/// What to do with admins.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List admins, and until when their certificates last.
    #[command(after_help = "Examples:\n  tandem admins list\n  tandem admins list -o json")]
    List {
        /// Form of output.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Make credentials for another admin, and a configuration beside them.
    #[command(
        after_help = "Example:\n  tandem admins create ada --folder ada\n  tandem --config ada/tandem.yaml status"
    )]
    Create {
        /// The admin's name.
        name: String,
        /// Folder to make; it must not be there yet.
        #[arg(long)]
        folder: PathBuf,
    },
    /// Get a new certificate for the credentials that this command uses, and the newest word on whom to trust.
    #[command(after_help = "Example:\n  tandem admins renew")]
    Renew,
    /// Trust no certificate of an admin any more, from now on.
    #[command(after_help = "Examples:\n  tandem admins revoke ada\n  tandem admins revoke admin --force")]
    Revoke {
        /// The admin.
        name: String,
        /// Also when these are your own credentials, or those of the last admin.
        #[arg(long)]
        force: bool,
    },
}

pub(crate) async fn run(connection: Connection, config: Option<&Path>, command: &Command) -> Result<()> {
    match command {
        Command::List { output } => list(connection, *output).await,
        Command::Create { name, folder } => create(connection, name, folder).await,
        Command::Renew => {
            let name = renew(connection, config).await?;
            write(&format!("admin/{name} renewed\n"))
        }
        Command::Revoke { name, force } => revoke(connection, name, *force).await,
    }
}

async fn list(mut connection: Connection, output: Format) -> Result<()> {
    let answer = connection.fleet.list_admins(ListAdminsRequest {}).await;
    let admins = answer.map_err(|status| connection.explain(&status))?.into_inner().admins;
    if output.is_table() {
        return write(&table(&admins, Timestamp::now()));
    }
    let objects: Vec<Value> = admins.iter().map(object).collect();
    let label = |object: &Value| format!("admin/{}", text(object, &["name"]));
    write(&for_programs(&objects, false, output, label)?)
}

async fn create(mut connection: Connection, name: &str, folder: &Path) -> Result<()> {
    if folder.exists() {
        bail!("{} is there already: name a folder that is not", folder.display());
    }
    certified(&mut connection, name).await?.save(folder)?;
    let path = folder.join("tandem.yaml");
    let text = format!(
        "# For the tandem CLI: `tandem --config {}` or TANDEM_CONFIG.\noperator: {}\ncredentials: .\n",
        path.display(),
        connection.operator
    );
    std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))?;
    write(&format!("admin/{name} created: give them {}, which nobody else should read\n", folder.display()))
}

/// Replaces the credentials that the configuration names. Says whose they are.
pub(crate) async fn renew(mut connection: Connection, named: Option<&Path>) -> Result<String> {
    let folder = config::load(named)?.credentials;
    let Identity::Admin(name) = Credentials::load(&folder)?.identity()? else {
        bail!("the credentials in {} are not of an admin", folder.display());
    };
    let fresh = certified(&mut connection, name.as_str()).await?;
    fresh.save(&folder).with_context(|| format!("{} can't be written", folder.display()))?;
    Ok(name.to_string())
}

/// Whether the configuration's credentials are of the authority with this fingerprint.
pub(crate) fn is_of(named: Option<&Path>, authority: &str) -> bool {
    let signed = || {
        let own = Credentials::load(&config::load(named).ok()?.credentials).ok()?;
        own.issuer(&own.ca_pem).ok()?
    };
    signed().is_some_and(|signed| signed.to_string() == authority)
}

async fn certified(connection: &mut Connection, name: &str) -> Result<Credentials> {
    let own = KeyAndRequest::generate()?;
    let request = CertifyRequest {
        role: Role::Admin.into(),
        name: name.to_owned(),
        csr_pem: own.csr_pem,
        addresses: Vec::new(),
    };
    let answer = connection.fleet.certify_admin(request).await;
    let answer = answer.map_err(|status| connection.explain(&status))?.into_inner();
    Ok(Credentials::new(answer.certificate_pem, own.key_pem, answer.ca_pem))
}

async fn revoke(mut connection: Connection, name: &str, force: bool) -> Result<()> {
    let request = RevokeRequest { role: Role::Admin.into(), name: name.to_owned(), force };
    let revoked = connection.fleet.revoke(request).await.map_err(|status| connection.explain(&status))?;
    let serials = revoked.into_inner().serials.len();
    write(&format!(
        "admin/{name} revoked: {serials} certificate{} no longer trusted\n",
        if serials == 1 { " is" } else { "s are" }
    ))
}

fn table(admins: &[AdminSummary], now: Timestamp) -> String {
    let row = |admin: &AdminSummary| {
        let until = match Timestamp::from_second(admin.not_after) {
            Ok(at) if admin.not_after > 0 => at.strftime("%F").to_string(),
            _ => "no longer trusted".to_owned(),
        };
        let age =
            Timestamp::from_second(admin.since).map_or_else(|_| "-".to_owned(), |then| since(then, now));
        let you = if admin.caller { "yes" } else { "" };
        vec![admin.name.clone(), admin.certificates.to_string(), until, age, you.to_owned()]
    };
    plain(&["NAME", "CERTIFICATES", "NOT AFTER", "AGE", "YOU"], admins.iter().map(row))
}

fn object(admin: &AdminSummary) -> Value {
    let time = |seconds: i64| {
        (seconds > 0).then(|| Timestamp::from_second(seconds).ok()).flatten().map(|at| at.to_string())
    };
    json!({
        "name": admin.name, "certificates": admin.certificates, "notAfter": time(admin.not_after),
        "since": time(admin.since), "you": admin.caller,
    })
}
