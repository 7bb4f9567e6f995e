//! Several operators of one cluster, as processes, on a real API server: any of them answers, one leads, and a leader that was
//! away writes nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tandem_control_api::{ObjectRef, Role, ScaleRequest, StatusRequest};
use tandem_servers::Fault;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use world::operators::{Home, NAMES, Process, answers};
use world::{Machine, World, condition, within};

const MEMORY: u64 = 4 << 30;
/// What is promised from a leader's death to the next one's first act.
const PROMISED: Duration = Duration::from_secs(5);

/// As a Service is: one address, and whoever of those behind it answers.
struct Balancer {
    port: u16,
    _task: AbortOnDropHandle<()>,
}

impl Balancer {
    async fn start(ports: Vec<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let turn = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (ports, turn) = (ports.clone(), Arc::clone(&turn));
                tokio::spawn(async move {
                    for _ in 0..ports.len() {
                        let next = ports[turn.fetch_add(1, Ordering::Relaxed) % ports.len()];
                        if let Ok(mut server) = TcpStream::connect(("127.0.0.1", next)).await {
                            drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                            return;
                        }
                    }
                });
            }
        });
        Self { port, _task: AbortOnDropHandle::new(task) }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

struct Site {
    home: Home,
    operators: Vec<Process>,
    world: World,
    machines: Vec<Machine>,
    _balancer: Balancer,
}

impl Site {
    /// Two operators, and three machines that came by their common address.
    async fn start(dir: tempfile::TempDir, (home, flags): (Home, Vec<Vec<String>>)) -> Self {
        tandem_pki::install_tls_provider();
        let mut operators = Vec::new();
        for (name, flags) in NAMES.into_iter().zip(&flags) {
            let process = Process::start(name, dir.path(), flags);
            answers(&format!("https://127.0.0.1:{}", process.port), &process.admin).await;
            operators.push(process);
        }
        let balancer = Balancer::start(operators.iter().map(|process| process.port).collect()).await;
        let admin = answers(&balancer.url(), &operators[0].admin).await;
        let world = World::of_process(dir, &balancer.url(), admin);
        let mut machines = Vec::new();
        for name in ["a", "b", "c"] {
            machines.push(world.machine(name, MEMORY).await);
        }
        world.apply(world.deployment("tiny", 1)).await.unwrap();
        let redundant = |object: &Value| condition(object, "Redundant")["status"] == "True";
        world.until("InferenceDeployment", "tiny", "redundancy", redundant).await;
        Self { home, operators, world, machines, _balancer: balancer }
    }

    fn term(&self) -> u64 {
        self.machines.iter().filter_map(|machine| machine.told()["term"].as_u64()).max().unwrap()
    }

    /// Which of the operators leads now.
    fn leader(&self) -> usize {
        let holder = self.home.holder();
        NAMES.iter().position(|name| holder.starts_with(name)).expect("one of them leads")
    }

    /// Asks for one copy more, of whichever operator answers.
    async fn scale(&self) {
        let name =
            ObjectRef { kind: "InferenceDeployment".into(), namespace: "llm".into(), name: "tiny".into() };
        let request = ScaleRequest { r#ref: Some(name), replicas: 2 };
        within("an answer", async {
            // A frozen one accepts, and says nothing.
            let ask = || async {
                let mut objects = self.world.objects();
                tokio::time::timeout(Duration::from_secs(1), objects.scale(request.clone())).await
            };
            while !matches!(ask().await, Ok(Ok(_))) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Asks for one copy more, and waits until a host is told so by a newer leader; how long that took.
    async fn until_another_acts(&mut self, term: u64) -> Duration {
        let begun = Instant::now();
        self.scale().await;
        let newer = |spec: &Value| spec["term"].as_u64() > Some(term);
        let waits = self.machines.iter_mut().map(|machine| Box::pin(machine.spec("a newer term", newer)));
        drop(futures::future::select_all(waits).await);
        begun.elapsed()
    }
}

#[tokio::test]
async fn in_kubernetes_the_leader_is_killed_and_the_other_one_acts() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::kubernetes(dir.path()).await;
    the_leader_is_killed_and_the_other_one_acts(Site::start(dir, home).await).await;
}

#[tokio::test]
async fn on_etcd_the_leader_is_killed_and_the_other_one_acts() {
    the_leader_is_killed_and_the_other_one_acts(
        Site::start(tempfile::tempdir().unwrap(), Home::etcd()).await,
    )
    .await;
}

async fn the_leader_is_killed_and_the_other_one_acts(mut site: Site) {
    // Every second call is answered by the one that doesn't lead.
    within("the one that relays names itself, and all hosts are heard", async {
        loop {
            let status = site.world.fleet().status(StatusRequest {}).await;
            let Ok(status) = status.map(tonic::Response::into_inner) else { continue };
            let heard = status.hosts.iter().filter(|host| host.connected).count();
            if status.leading && status.operators.len() == 2 && heard == 3 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;

    let (term, leader) = (site.term(), site.leader());
    site.operators[leader].signal(Signal::SIGKILL);
    let took = site.until_another_acts(term).await;
    println!("from the leader's death to the other's first act: {:.2} s", took.as_secs_f64());
    assert!(took <= PROMISED, "{took:?}");
    assert_eq!(site.leader(), 1 - leader);
}

#[tokio::test]
async fn a_leader_that_was_away_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::kubernetes(dir.path()).await;
    let mut site = Site::start(dir, home).await;
    let (term, leader) = (site.term(), site.leader());
    let Home::Kubernetes(_, proxies) = &site.home else { panic!("it is in Kubernetes") };
    // Its next write of a host's spec is on its way when it is stopped, and arrives after the other one has taken over. Labels are
    // patched without a version, and may come late: a leader's word they are not.
    proxies[leader].strike(Fault::Hold, usize::MAX, |method, uri| {
        method == "PUT" && uri.contains("/inferencehosts/") && !uri.contains("/status")
    });
    site.scale().await;
    within("a write that is held", proxies[leader].struck(1)).await;
    site.operators[leader].signal(Signal::SIGSTOP);
    let took = site.until_another_acts(term).await;
    // A new leader marks every host's spec with its term.
    for machine in &mut site.machines {
        machine.spec("the newer term", |spec| spec["term"].as_u64() > Some(term)).await;
    }
    let Home::Kubernetes(plane, proxies) = &site.home else { panic!("it is in Kubernetes") };
    let taken_over = jiff::Timestamp::now().to_string();
    println!("from the leader's stop to the other's first act: {:.2} s", took.as_secs_f64());
    proxies[leader].release();
    let by_the_old = |event: &tandem_servers::AuditEvent| {
        event.user.username == NAMES[leader]
            && event.verb == "update"
            && event
                .object_ref
                .as_ref()
                .is_some_and(|object| object.resource == "inferencehosts" && object.subresource.is_empty())
    };
    let late = within("the old leader's late write", async {
        loop {
            let audit = plane.audit().unwrap();
            let codes = audit
                .iter()
                .filter(|event| by_the_old(event))
                .filter_map(|event| event.response_status.as_ref());
            if let Some(refused) = codes.map(|status| status.code).find(|code| *code >= 400) {
                return refused;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(matches!(late, 409 | 422), "{late}");

    // Awake again, it relays, and has nothing to say to hosts.
    site.operators[leader].signal(Signal::SIGCONT);
    let old = format!("https://127.0.0.1:{}", site.operators[leader].port);
    answers(&old, &site.operators[leader].admin).await;
    assert_eq!(site.leader(), 1 - leader);
    let written = |event: &&tandem_servers::AuditEvent| {
        by_the_old(event) && event.response_status.as_ref().is_some_and(|status| status.code < 400)
    };
    let audit = plane.audit().unwrap();
    let last = audit.iter().filter(written).map(|event| event.request_received_timestamp.clone()).max();
    assert!(last < taken_over.into(), "{last:?}");
    assert!(site.term() > term);
}

/// Fifty hosts report twenty times a second, and nothing changes: what is written is the lease. `TANDEM_REST_SECONDS` says how
/// long it is watched.
#[tokio::test]
async fn at_rest_only_the_lease_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::kubernetes(dir.path()).await;
    let mut site = Site::start(dir, home).await;
    for n in 3..50 {
        let name = format!("host-{n}");
        // One address may only join so many hosts in a while.
        let credentials = within("a place in the queue", async {
            loop {
                let token = site.world.token(Role::Host, "").await;
                match site.world.join_with(&token, Role::Host, &name).await {
                    Ok(credentials) => return credentials,
                    Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                }
            }
        })
        .await;
        site.machines.push(site.world.machine_with(&name, credentials, MEMORY, Value::Null).await);
    }
    let Home::Kubernetes(plane, _) = &site.home else { panic!("it is in Kubernetes") };
    let writes = || {
        let ours = |event: &tandem_servers::AuditEvent| {
            NAMES.contains(&event.user.username.as_str()) && event.is_write()
        };
        let audit = plane.audit().unwrap().into_iter().filter(ours);
        audit.map(|event| event.object_ref.unwrap_or_default().resource).collect::<Vec<_>>()
    };
    let others = || writes().into_iter().filter(|resource| resource != "leases").count();
    // What the last ones to join have brought about comes to its end.
    within("rest", async {
        let mut before = usize::MAX;
        while before != others() {
            before = others();
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    })
    .await;
    let (before, all) = (others(), writes().len());
    let seconds = std::env::var("TANDEM_REST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let leases = writes().len() - all;
    println!("writes in {seconds} s at rest, with {} hosts: {leases}, to the lease", site.machines.len());
    assert_eq!(others(), before, "something else than the lease was written");
    assert!(leases as u64 >= seconds / 2, "the lease was renewed {leases} times in {seconds} s");
}

/// Every request is 400 ms on its way. The lease is kept all the same, and what is asked for is done.
#[tokio::test]
async fn a_long_line_to_the_api_server_costs_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::kubernetes(dir.path()).await;
    let site = Site::start(dir, home).await;
    let (term, leader) = (site.term(), site.leader());
    let Home::Kubernetes(_, proxies) = &site.home else { panic!("it is in Kubernetes") };
    for proxy in proxies {
        proxy.strike(Fault::Delay(Duration::from_millis(400)), usize::MAX, |_, _| true);
    }
    let begun = Instant::now();
    site.scale().await;
    let copies = |object: &Value| object["status"]["readyCopies"] == 3;
    site.world.until("InferenceDeployment", "tiny", "three copies", copies).await;
    println!("from the change to its copies, at 400 ms a request: {:.2} s", begun.elapsed().as_secs_f64());
    // Several times the lease's length.
    within("more renewals", proxies[leader].struck(30)).await;
    assert_eq!((site.leader(), site.term()), (leader, term));
}
