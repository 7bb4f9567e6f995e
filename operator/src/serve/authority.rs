//! The cluster's authority and its admins, for the CLI.

use std::collections::BTreeSet;
use std::sync::Arc;

use tandem_control_api::{
    AdminList, AdminSummary, AuthorityParty, AuthorityStatus, AuthoritySummary, Certificate, CertifyRequest,
    Role, RotateAuthorityRequest,
};
use tandem_pki::{Identity, Name, OPERATOR_LIFETIME};
use tonic::{Response, Status};

use super::enrollment::{certificate, said};
use crate::authority::{self, Authorities, NoAuthority};
use crate::caller::{chain, refusal};
use crate::cluster::Cluster;
use crate::membership::{self, Binding, Made};
use crate::rotation::{self, Lack, Party, Phase};

/// How it is with the authority now.
pub(super) async fn status(cluster: &Cluster) -> Result<AuthorityStatus, Status> {
    let known = cluster.authorities();
    let authorities = known.all().into_iter().map(|authority| AuthoritySummary {
        fingerprint: authority.fingerprint().to_string(),
        subject: authority.subject().to_owned(),
        not_after: authority.not_after(),
        signs: authority.fingerprint() == known.signing(),
    });
    let mut status = AuthorityStatus {
        phase: "Stable".to_owned(),
        authorities: authorities.collect(),
        ..AuthorityStatus::default()
    };
    if let (Some(rotation), Some(change)) = (known.rotation(), known.change()) {
        status.phase = match rotation.phase {
            Phase::Introducing => "Introducing",
            Phase::Reissuing => "Reissuing",
        }
        .to_owned();
        status.since = rotation.since.as_second();
        let parties = rotation::parties(cluster, &known).await.map_err(refusal)?;
        status.parties =
            parties.iter().map(|party| told(cluster, party, change.lack(party), &rotation.without)).collect();
    }
    Ok(status)
}

fn told(
    cluster: &Cluster,
    party: &Party,
    lack: Option<Lack>,
    without: &BTreeSet<Identity>,
) -> AuthorityParty {
    let heard = party.word.as_ref().map_or(0, |word| word.at);
    let (role, name, heard) = match &party.who {
        Identity::Host(name) => {
            let seen = cluster.sessions.seen(name.as_str()).1.map(|seen| seen.as_second());
            (Role::Host, name, seen.unwrap_or(heard))
        }
        Identity::Admin(name) => (Role::Admin, name, 0),
        Identity::Gateway(name) => {
            let here = cluster.gateways().contains_key(name.as_str());
            (Role::Gateway, name, if here { cluster.now().as_second() } else { heard })
        }
        other => unreachable!("{other} is no member"),
    };
    let lacks = match (&party.who, lack) {
        (_, None) => "",
        (Identity::Admin(_), Some(_)) => {
            "has credentials of the old authority: takes new ones from where the operator writes them, or by `tandem admins \
             renew`"
        }
        (_, Some(Lack::Word)) => "has not said whom it trusts: it is away, or of an older release",
        (_, Some(Lack::Trust)) => "does not trust the new authority yet",
        (_, Some(Lack::Certificate)) => "goes by a certificate of the old authority",
    };
    AuthorityParty {
        role: role.into(),
        name: name.to_string(),
        lacks: lacks.to_owned(),
        waited_for: party.waited_for && !without.contains(&party.who),
        last_heard: heard,
    }
}

/// Begins to replace the authority; or goes on without some, while it is being replaced.
pub(super) async fn rotate(
    cluster: &Cluster,
    admin: &Name,
    request: RotateAuthorityRequest,
) -> Result<AuthorityStatus, Status> {
    cluster.follow_authority().await.map_err(unusable)?;
    let known = cluster.authorities();
    let without = excused(cluster, &known, &request.without).await?;
    let store = &*cluster.store;
    let written = match known.rotation() {
        None => {
            authority::begin(store, &known, without.clone(), (cluster.system_time(), cluster.now())).await
        }
        Some(rotation) if without.is_empty() => {
            return Err(Status::failed_precondition(format!(
                "the authority is being replaced since {}: `tandem authority status` says who is waited for",
                rotation.since.strftime("%F %T UTC")
            )));
        }
        Some(_) => authority::go_without(store, &known, &without).await,
    };
    match written {
        Ok(newest) => {
            let without: Vec<String> = without.iter().map(ToString::to_string).collect();
            let (old, new) = (newest.signing(), newest.survivor().fingerprint());
            tracing::warn!(%admin, %old, %new, without = without.join(", "), "the authority is to be replaced");
        }
        Err(NoAuthority::Store(error)) if error.is_conflict() => {
            return Err(Status::aborted("another one changes the authority right now: look, and try again"));
        }
        Err(error) => return Err(unusable(error)),
    }
    cluster.follow_authority().await.map_err(unusable)?;
    status(cluster).await
}

/// Whom not to wait for. Each has to be somebody who would be.
async fn excused(
    cluster: &Cluster,
    known: &Authorities,
    named: &[AuthorityParty],
) -> Result<BTreeSet<Identity>, Status> {
    if named.is_empty() {
        return Ok(BTreeSet::new());
    }
    let parties = rotation::parties(cluster, known).await.map_err(refusal)?;
    let mut without = BTreeSet::new();
    for one in named {
        let who = match one.role() {
            Role::Host => Identity::host(&one.name),
            Role::Gateway => Identity::gateway(&one.name),
            _ => return Err(Status::invalid_argument("hosts and gateways are waited for, nobody else")),
        }
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !parties.iter().any(|party| party.who == who) {
            return Err(Status::not_found(format!(
                "nobody waits for {who}: it has no certificate, or its certificate has ended"
            )));
        }
        without.insert(who);
    }
    Ok(without)
}

fn unusable(error: NoAuthority) -> Status {
    match error {
        NoAuthority::Store(error) => refusal(error),
        error => {
            tracing::error!(error = chain(&error), "the authority can't be used");
            Status::internal(error.to_string())
        }
    }
}

/// Everybody who may ask this cluster for anything.
pub(super) async fn admins(cluster: &Cluster, caller: &Name) -> Result<AdminList, Status> {
    let admins = membership::admins(&*cluster.store, cluster.now()).await.map_err(refusal)?;
    let admins = admins.into_iter().map(|admin| AdminSummary {
        caller: admin.name == caller.as_str(),
        name: admin.name,
        since: admin.since.as_second(),
        not_after: admin.not_after.iter().max().copied().unwrap_or(0),
        certificates: u32::try_from(admin.not_after.len()).unwrap_or(u32::MAX),
    });
    Ok(AdminList { admins: admins.collect() })
}

/// Refuses to lock everybody out, unless it is meant.
pub(super) async fn may_revoke_admin(
    cluster: &Cluster,
    caller: &Name,
    target: &Name,
    force: bool,
) -> Result<(), Status> {
    if force {
        return Ok(());
    }
    let way_back = "the operator writes new credentials of `admin` when it starts: to DATA-DIR/admin, or the Secret tandem-admin";
    if caller == target {
        return Err(Status::failed_precondition(format!(
            "these are your own credentials: with --force they are revoked, and {way_back}"
        )));
    }
    let admins = membership::admins(&*cluster.store, cluster.now()).await.map_err(refusal)?;
    let others = admins.iter().any(|admin| admin.name != target.as_str() && !admin.not_after.is_empty());
    if !others {
        return Err(Status::failed_precondition(format!(
            "{target} is the last admin that is known: with --force they are revoked, and {way_back}"
        )));
    }
    Ok(())
}

/// A certificate for another admin, or for the caller anew.
pub(super) async fn certify_admin(
    cluster: &Arc<Cluster>,
    caller: &Name,
    serial: &str,
    request: CertifyRequest,
) -> Result<Response<Certificate>, Status> {
    if request.role() != Role::Admin {
        return Err(Status::invalid_argument("this call makes certificates for admins alone"));
    }
    let identity =
        Identity::admin(&request.name).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let issued = cluster
        .authorities()
        .sign(&request.csr_pem, &identity, &[], cluster.system_time(), OPERATOR_LIFETIME)
        .map_err(|error| Status::invalid_argument(chain(&error)))?;
    let own = caller.as_str() == request.name;
    let known = membership::admins(&*cluster.store, cluster.now()).await.map_err(refusal)?;
    let taken = known.iter().find(|admin| admin.name == request.name);
    let binding = match taken {
        _ if own => Binding::Holder(serial),
        Some(admin) if !admin.not_after.is_empty() => {
            return Err(Status::already_exists(format!(
                "there is an admin {} already: they renew their own certificate, or you revoke it first",
                request.name
            )));
        }
        // Whoever had the name was revoked, or their certificates have ended.
        Some(_) => Binding::TakenOver(None),
        None => Binding::First,
    };
    let made = Made { identity: &identity, issued: &issued };
    membership::remember(&*cluster.store, &identity, &made, &binding, cluster.now())
        .await
        .map_err(|error| said(error, &identity))?;
    tracing::warn!(by = %caller, %identity, serial = issued.serial, "certified an admin");
    Ok(certificate(issued))
}
