//! The authority is replaced while several operators answer, and whoever leads is killed in each phase: the other one carries it on,
//! and nobody is left behind.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::gateways_client::GatewaysClient;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AuthorityRequest, AuthorityStatus, CertifyRequest, Protocol, Role, RotateAuthorityRequest, RouteTable,
    RoutesRequest, TrustConfirmation,
};
use tandem_pki::{Credentials, EnrollError, Fingerprint, KeyAndRequest, fetch_pinned_ca};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};
use world::operators::{Home, NAMES, Process, answers};
use world::{Host, World, channel, within};

/// Longer than the 5 s within which an operator reads what another one has written.
const SETTLE: [&str; 2] = ["--authority-settle-seconds", "6"];

/// A host or a gateway, as far as it goes along with the authority: dials its operators in turn, trusts whom it is told to, renews when
/// another authority signs, and says so.
struct Party {
    name: String,
    own: watch::Receiver<Credentials>,
    connected: watch::Receiver<bool>,
    /// Why each of its sessions ended.
    lost: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

struct Dialler {
    role: Role,
    name: String,
    own: watch::Sender<Credentials>,
    connected: watch::Sender<bool>,
}

enum Session {
    Host(Host),
    Gateway(Streaming<RouteTable>),
}

impl Session {
    /// The next word on whom to trust, and which authority signs.
    async fn trust(&mut self) -> Result<(String, String), Status> {
        let over = || Status::unavailable("it ended");
        loop {
            match self {
                // For as long as it takes: there is nothing else that these are told.
                Self::Host(host) => {
                    let message = host.down.message().await?.ok_or_else(over)?;
                    if let Some(Down::Trust(trust)) = message.message {
                        return Ok((trust.ca_pem, trust.issuer));
                    }
                }
                Self::Gateway(tables) => {
                    let table = tables.message().await?.ok_or_else(over)?;
                    return Ok((table.ca_pem, table.issuer));
                }
            }
        }
    }
}

impl Dialler {
    fn own(&self) -> Credentials {
        self.own.borrow().clone()
    }

    async fn open(&self, url: &str) -> Result<Session, Status> {
        if self.role == Role::Host {
            return Ok(Session::Host(Host::connect(url, &self.name, self.own(), 0).await?));
        }
        let request =
            RoutesRequest { protocol: Some(Protocol::own(&[])), url: format!("http://{}:8080", self.name) };
        let tables = GatewaysClient::new(channel(url, &self.own())).routes(request).await?;
        Ok(Session::Gateway(tables.into_inner()))
    }

    async fn converse(&self, url: &str) -> Result<(), Status> {
        let mut session = self.open(url).await?;
        self.connected.send_replace(true);
        let mut told = None;
        let mut again = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                word = session.trust() => told = Some(word?),
                _ = again.tick(), if told.is_some() => {}
            }
            if let Some((ca_pem, issuer)) = &told
                && self.come_along(url, ca_pem, issuer).await.is_ok()
            {
                told = None;
            }
        }
    }

    /// An error is tried again, as agents and gateways do: an operator may not have read yet what another one has written.
    async fn come_along(&self, url: &str, ca_pem: &str, issuer: &str) -> Result<(), Status> {
        let mut own = self.own().trusting(ca_pem, []);
        self.own.send_replace(own.clone());
        let of_it = |own: &Credentials| {
            own.issuer(&own.ca_pem).unwrap().is_some_and(|known| known.to_string() == issuer)
        };
        let mut agents = AgentsClient::new(channel(url, &own));
        if !of_it(&own) {
            let key = KeyAndRequest::generate().unwrap();
            let (role, name) = (self.role.into(), self.name.clone());
            let request = CertifyRequest { role, name, csr_pem: key.csr_pem, addresses: Vec::new() };
            let answer = agents.certify(request).await?.into_inner();
            own = Credentials::new(answer.certificate_pem, key.key_pem, answer.ca_pem);
            if !of_it(&own) {
                return Err(Status::unavailable("this operator signs with the old one"));
            }
            self.own.send_replace(own.clone());
            agents = AgentsClient::new(channel(url, &own));
        }
        let authorities = own.authorities().iter().map(Fingerprint::to_string).collect();
        agents.confirm_trust(TrustConfirmation { authorities, runs_gateway: false }).await.map(drop)
    }
}

impl Party {
    fn start(role: Role, name: &str, credentials: Credentials, urls: [String; 2]) -> Self {
        let (own, kept) = watch::channel(credentials);
        let (connected, is_connected) = watch::channel(false);
        let lost = Arc::new(Mutex::new(Vec::new()));
        let dialler = Dialler { role, name: name.to_owned(), own, connected };
        let said = Arc::clone(&lost);
        let task = tokio::spawn(async move {
            for url in urls.iter().cycle() {
                let ended = dialler.converse(url).await.expect_err("it ends with an error");
                dialler.connected.send_replace(false);
                said.lock().unwrap().push(format!("{url}: {ended}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let task = AbortOnDropHandle::new(task);
        Self { name: name.to_owned(), own: kept, connected: is_connected, lost, _task: task }
    }

    async fn connected(&mut self) {
        within(&format!("{} is connected", self.name), self.connected.wait_for(|is| *is)).await.unwrap();
    }

    /// What it has lost since it was asked last.
    fn lost(&self) -> Vec<String> {
        std::mem::take(&mut *self.lost.lock().unwrap())
    }
}

struct Site {
    home: Home,
    operators: Vec<Process>,
    parties: Vec<Party>,
    dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        tandem_pki::install_tls_provider();
        let dir = tempfile::tempdir().unwrap();
        let (home, flags) = Home::etcd();
        let mut operators = Vec::new();
        for (name, flags) in NAMES.into_iter().zip(flags) {
            let flags = [flags, SETTLE.map(str::to_owned).to_vec()].concat();
            let process = Process::start(name, dir.path(), &flags);
            answers(&process.url(), &process.admin).await;
            operators.push(process);
        }
        Self { home, operators, parties: Vec::new(), dir }
    }

    fn leader(&self) -> usize {
        let holder = self.home.holder();
        NAMES.iter().position(|name| holder.starts_with(name)).expect("one of them leads")
    }

    /// Waits until this one leads.
    async fn leads(&self, operator: usize) {
        within("the other one leads", async {
            while self.leader() != operator {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }

    /// The world as seen from one operator, with the credentials that it has written for its admin.
    fn at(&self, operator: usize) -> Option<World> {
        let process = &self.operators[operator];
        let admin = Credentials::load(&process.admin).ok()?;
        Some(World::of_process(tempfile::tempdir_in(self.dir.path()).unwrap(), &process.url(), admin))
    }

    /// Waits until an operator says what is wanted of the replacement.
    async fn until(&self, operator: usize, what: &str, so: impl Fn(&AuthorityStatus) -> bool) {
        let mut last = None;
        let reached = tokio::time::timeout(world::SOON, async {
            loop {
                if let Some(world) = self.at(operator)
                    && let Ok(status) = world.fleet().authority(AuthorityRequest {}).await
                {
                    let status = status.into_inner();
                    if so(&status) {
                        return;
                    }
                    last = Some(status);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let reached = reached.await;
        assert!(reached.is_ok(), "waited in vain: {what}; last seen: {last:#?}");
    }

    /// Lets these join, which come to these operators first.
    async fn join(
        &self,
        by: usize,
        parties: &[(Role, &str, usize)],
    ) -> Vec<(Role, String, Credentials, [String; 2])> {
        let world = self.at(by).unwrap();
        let mut joined = Vec::new();
        for (role, name, first) in parties {
            let urls = [self.operators[*first].url(), self.operators[1 - first].url()];
            joined.push((*role, (*name).to_owned(), world.join(*role, name).await, urls));
        }
        joined
    }

    async fn all_connected(&mut self) {
        for party in &mut self.parties {
            party.connected().await;
        }
    }

    /// What anybody has lost since this was asked last.
    fn lost(&self) -> Vec<String> {
        self.parties.iter().flat_map(Party::lost).collect()
    }

    /// Kills the one that leads, and waits until the other one does and everybody is back.
    async fn kill_the_leader(&mut self) -> usize {
        assert_eq!(self.lost(), [""; 0], "nobody has lost a connection up to here");
        let leader = self.leader();
        self.operators[leader].kill();
        self.leads(1 - leader).await;
        self.all_connected().await;
        leader
    }
}

fn missing(status: &AuthorityStatus) -> Vec<&str> {
    let missing = status.parties.iter().filter(|party| party.waited_for && !party.lacks.is_empty());
    missing.map(|party| party.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_in_each_phase_and_everybody_comes_along_all_the_same() {
    let mut site = Site::start().await;
    let first = site.leader();
    let here = [(Role::Host, "mac-a", first), (Role::Host, "mac-b", 1 - first)];
    let edges = [(Role::Gateway, "edge-a", first), (Role::Gateway, "edge-b", 1 - first)];
    for (role, name, own, urls) in site.join(first, &[here, edges].concat()).await {
        site.parties.push(Party::start(role, &name, own, urls));
    }
    let away = [(Role::Host, "mac-z", first), (Role::Gateway, "edge-z", first)];
    let away = site.join(first, &away).await;
    site.all_connected().await;
    drop(site.lost());

    // The one that does not lead is asked to begin. Those at either operator come along; two are away.
    let world = site.at(1 - first).unwrap();
    let begun = world.fleet().rotate_authority(RotateAuthorityRequest::default()).await.unwrap().into_inner();
    let fingerprint = |n: usize| begun.authorities[n].fingerprint.parse::<Fingerprint>().unwrap();
    let (old, new) = (fingerprint(0), fingerprint(1));
    let waits =
        |status: &AuthorityStatus| status.phase == "Introducing" && missing(status) == ["mac-z", "edge-z"];
    site.until(first, "those who are here have come along", waits).await;
    let killed = site.kill_the_leader().await;
    assert_eq!(killed, first);
    site.until(1 - first, "what was said is not forgotten", waits).await;
    drop(site.lost());

    // It comes back and relays, also for those who have been away: the other one takes the step.
    site.operators[first].start_again();
    answers(&site.operators[first].url(), &site.operators[first].admin).await;
    for (role, name, own, urls) in away {
        site.parties.push(Party::start(role, &name, own, urls));
    }
    site.all_connected().await;
    site.until(1 - first, "the new one signs", |status| status.phase == "Reissuing").await;
    let killed = site.kill_the_leader().await;
    assert_eq!(killed, 1 - first);
    drop(site.lost());
    site.operators[killed].start_again();
    answers(&site.operators[killed].url(), &site.operators[killed].admin).await;
    site.until(first, "the new one alone", |status| {
        status.phase == "Stable" && status.authorities[0].fingerprint == new.to_string()
    })
    .await;

    // Both show a certificate of the new one, and nothing of the old one: also the one that does not lead, as soon as it has read of it.
    for process in &site.operators {
        within("a certificate of the new one", async {
            while fetch_pinned_ca(&process.url(), old).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        let refused = fetch_pinned_ca(&process.url(), old).await;
        assert!(matches!(refused, Err(EnrollError::WrongAuthority(_))), "{refused:?}");
        fetch_pinned_ca(&process.url(), new).await.unwrap();
    }
    for party in &mut site.parties {
        let so =
            |own: &Credentials| own.authorities() == [new] && own.issuer(&own.ca_pem).unwrap() == Some(new);
        within(&format!("{} is of the new one", party.name), party.own.wait_for(so)).await.unwrap();
        assert!(*party.connected.borrow());
    }
    assert_eq!(site.lost(), [""; 0], "nobody has lost a connection since");
}
