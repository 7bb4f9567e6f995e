//! What members have said of whom they trust and which certificate they go by, kept in their records.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tandem_pki::{Fingerprint, Identity};
use tandem_store::{Store, StoreError};

use super::{Certified, JoinRefused, MEMBERS, Member, REVOKED, read, remove, write};
use crate::rotation::{Party, Word};

/// Members without a good certificate are remembered for a day more: clocks differ.
const AFTER_THE_END: i64 = 24 * 3600;

/// As it lies in the record of whoever answers for the speaker.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Stand {
    trusts: BTreeSet<String>,
    issuer: String,
    /// A host: it runs a gateway, which speaks for itself.
    #[serde(default)]
    runs_gateway: bool,
    /// Seconds since 1970.
    at: i64,
}

/// What somebody says now.
pub(crate) struct Said<'a> {
    /// Who speaks.
    pub(crate) who: &'a Identity,
    pub(crate) trusts: BTreeSet<Fingerprint>,
    /// Of the certificate that it shows.
    pub(crate) issuer: Fingerprint,
    pub(crate) serial: &'a str,
    /// Seconds since 1970.
    pub(crate) not_after: i64,
    pub(crate) runs_gateway: bool,
}

/// An admin, by their certificates.
pub(crate) struct Admin {
    pub(crate) name: String,
    pub(crate) since: Timestamp,
    /// Ends of those that are good, in seconds since 1970.
    pub(crate) not_after: Vec<i64>,
}

/// Writes down what somebody says, if it is news. A certificate that is not in the record gets into it: of who has joined after
/// the backup was made from which the store comes.
pub(crate) async fn confirm(
    store: &dyn Store,
    member: &Identity,
    said: &Said<'_>,
    now: Timestamp,
) -> Result<(), JoinRefused> {
    let stand = Stand {
        trusts: said.trusts.iter().map(ToString::to_string).collect(),
        issuer: said.issuer.to_string(),
        runs_gateway: said.runs_gateway,
        at: now.as_second(),
    };
    loop {
        let before = store.record(MEMBERS, &member.uri()).await?;
        let mut known: Member = before.as_ref().and_then(read).unwrap_or_else(|| Member::new(now, None));
        if store.record(REVOKED, said.serial).await?.is_some() {
            return Err(JoinRefused::Revoked);
        }
        let kept = known.certificates.iter().any(|certified| certified.serial == said.serial);
        let same = |is: &Stand| {
            (&is.trusts, &is.issuer, is.runs_gateway) == (&stand.trusts, &stand.issuer, stand.runs_gateway)
        };
        if kept && known.stands.get(&said.who.uri()).is_some_and(same) {
            return Ok(());
        }
        if !kept {
            known.certificates.push(Certified {
                serial: said.serial.to_owned(),
                of: (said.who != member).then(|| said.who.uri()),
                not_after: said.not_after,
                issuer: Some(stand.issuer.clone()),
            });
        }
        known.stands.insert(said.who.uri(), stand.clone());
        let expected = before.as_ref().map(|record| &record.version);
        match store.put_record(MEMBERS, &member.uri(), expected, write(&known)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Everybody with a certificate that has not ended. `connected` are gateways that are here now, by name.
pub(crate) async fn parties(
    store: &dyn Store,
    connected: &BTreeMap<String, String>,
    now: Timestamp,
) -> Result<Vec<Party>, StoreError> {
    let records = store.records(MEMBERS).await?;
    let members =
        records.iter().filter_map(|record| Some((Identity::from_uri(&record.key)?, read::<Member>(record)?)));
    Ok(members.flat_map(|(who, member)| parties_of(&who, &member, connected, now)).collect())
}

/// A member, and the gateway that a host runs. Workers are the host's to see to before it speaks for itself.
fn parties_of(
    who: &Identity,
    member: &Member,
    connected: &BTreeMap<String, String>,
    now: Timestamp,
) -> Vec<Party> {
    let good = |of: Option<&str>| {
        let mut same = member.certificates.iter().filter(move |known| known.of.as_deref() == of);
        same.any(|known| known.not_after > now.as_second())
    };
    if !good(None) {
        return Vec::new();
    }
    let stand = member.stands.get(&who.uri());
    let own = Party { who: who.clone(), word: stand.and_then(word), waited_for: true };
    match who {
        Identity::Host(name) => {
            let gateway = Identity::Gateway(name.clone());
            let uri = gateway.uri();
            let runs = stand.is_some_and(|stand| stand.runs_gateway) && good(Some(&uri));
            let gateway = runs.then(|| Party {
                word: member.stands.get(&uri).and_then(word),
                who: gateway,
                waited_for: true,
            });
            [own].into_iter().chain(gateway).collect()
        }
        // Pods of gateways come and go, and their names with them.
        Identity::Gateway(name) if member.bound.is_some() => {
            let waited_for = connected.contains_key(name.as_str());
            if waited_for { vec![own] } else { Vec::new() }
        }
        // People take new credentials themselves. Which they have is known by what was made for them.
        Identity::Admin(_) => {
            let newest = member.certificates.iter().rev().find(|known| known.not_after > now.as_second());
            let issuer = newest.and_then(|known| known.issuer.as_ref()?.parse().ok());
            let word = issuer.map(|issuer| Word { trusts: BTreeSet::from([issuer]), issuer, at: 0 });
            vec![Party { word, waited_for: false, ..own }]
        }
        _ => vec![own],
    }
}

fn word(stand: &Stand) -> Option<Word> {
    Some(Word {
        trusts: stand.trusts.iter().filter_map(|text| text.parse().ok()).collect(),
        issuer: stand.issuer.parse().ok()?,
        at: stand.at,
    })
}

/// Every admin that a certificate was made for.
pub(crate) async fn admins(store: &dyn Store, now: Timestamp) -> Result<Vec<Admin>, StoreError> {
    let records = store.records(MEMBERS).await?;
    let admins = records.iter().filter_map(|record| {
        let Identity::Admin(name) = Identity::from_uri(&record.key)? else { return None };
        let member = read::<Member>(record)?;
        let ends = member.certificates.iter().map(|known| known.not_after);
        let not_after = ends.filter(|end| *end > now.as_second()).collect();
        Some(Admin { name: name.to_string(), since: member.joined, not_after })
    });
    Ok(admins.collect())
}

/// Forgets members whose certificates have all ended by themselves. Hosts that exist stay, so that nobody takes their name with
/// any token; so do those that were revoked.
pub(crate) async fn prune(
    store: &dyn Store,
    hosts: &BTreeSet<String>,
    now: Timestamp,
) -> Result<(), StoreError> {
    for record in store.records(MEMBERS).await? {
        let (Some(who), Some(member)) = (Identity::from_uri(&record.key), read::<Member>(&record)) else {
            continue;
        };
        let exists = matches!(&who, Identity::Host(name) if hosts.contains(name.as_str()));
        let ended = |known: &Certified| known.not_after + AFTER_THE_END < now.as_second();
        if !exists && !member.certificates.is_empty() && member.certificates.iter().all(ended) {
            tracing::info!(identity = %who, "forgets a member whose certificates have ended");
            remove(store, MEMBERS, &record).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certified(of: Option<&Identity>, not_after: i64) -> Certified {
        Certified { serial: "07".to_owned(), of: of.map(Identity::uri), not_after, issuer: None }
    }

    fn stand(runs_gateway: bool) -> Stand {
        Stand { trusts: BTreeSet::new(), issuer: Fingerprint::of(b"old").to_string(), runs_gateway, at: 9 }
    }

    #[test]
    fn those_count_whose_certificates_last() {
        let now = Timestamp::from_second(1000).unwrap();
        let none = BTreeMap::new();
        let (host, gateway) = (Identity::host("mac-a").unwrap(), Identity::gateway("mac-a").unwrap());
        let mut member = Member::new(now, None);
        let who = |member: &Member, who: &Identity, connected: &BTreeMap<String, String>| {
            let parties = parties_of(who, member, connected, now);
            parties.into_iter().map(|party| (party.who, party.word.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(who(&member, &host, &none), [], "it is revoked");
        member.certificates.push(certified(None, 1000));
        assert_eq!(who(&member, &host, &none), [], "its certificate has ended");
        member.certificates.extend([certified(None, 1001), certified(Some(&gateway), 1001)]);
        assert_eq!(who(&member, &host, &none), [(host.clone(), false)]);
        member.stands.insert(host.uri(), stand(false));
        assert_eq!(who(&member, &host, &none), [(host.clone(), true)], "it runs no gateway now");
        member.stands.insert(host.uri(), stand(true));
        assert_eq!(who(&member, &host, &none), [(host.clone(), true), (gateway.clone(), false)]);

        let mut joined = Member::new(now, None);
        joined.certificates.push(certified(None, 1001));
        assert_eq!(who(&joined, &gateway, &none).len(), 1, "by token: it may come back");
        let pod = Member { bound: Some("uid".to_owned()), ..joined };
        assert_eq!(who(&pod, &gateway, &none), []);
        let here = BTreeMap::from([("mac-a".to_owned(), String::new())]);
        assert_eq!(who(&pod, &gateway, &here).len(), 1);
    }
}
