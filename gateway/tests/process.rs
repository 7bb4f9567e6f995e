//! The program itself: joins by token, serves with and without a control plane, and ends without cutting streams.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the support is shared by test files that each use a part of it"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::client::{ask, body};
use support::operator::Operator;
use support::worker::{Pause, Script, Worker};
use support::{authority, soon, table};
use tandem_gateway::keep_renewed;
use tandem_pki::{Credentials, Identity};

/// A gateway as a process of its own.
struct Gateway {
    child: Child,
    url: String,
    log: Option<JoinHandle<String>>,
}

impl Gateway {
    fn command(operator: &str, data: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-gateway"));
        command.args(["--operator", operator, "--name", "edge", "--listen", "127.0.0.1:0"]);
        command.args(["--log-format", "json"]);
        command.arg("--data-dir").arg(data).env("RUST_LOG", "debug").env_remove("TANDEM_JOIN_TOKEN");
        command.stderr(Stdio::piped()).stdout(Stdio::null()).stdin(Stdio::null());
        command
    }

    /// Starts it and reads its log until it serves; the rest is kept by a thread.
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended at once: {log}")).unwrap();
            log += &line;
            log += "\n";
            if let Ok(event) = serde_json::from_str::<Value>(&line)
                && event["fields"]["message"] == "serving"
            {
                break event["fields"]["address"].as_str().unwrap().to_owned();
            }
        };
        let rest = std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| log = format!("{log}{line}\n"));
            log
        });
        Self { child, url: format!("http://{address}"), log: Some(rest) }
    }

    fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    /// Its exit and its log.
    fn ended(mut self) -> (ExitStatus, String) {
        (self.child.wait().unwrap(), self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Fails when it has ended, which is well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn it_joins_once_serves_without_a_control_plane_and_lets_streams_finish() {
    let authority = Arc::new(authority());
    let workers = [Worker::start(&authority, "a", Script::pausing(Pause::Before(8)))];
    let operator = Operator::start(&authority, table(&workers));
    let (url, token) = (operator.url(), operator.token.clone());
    let data = tempfile::tempdir().unwrap();
    let token_file = data.path().join("token");
    std::fs::write(&token_file, format!("{token}\n")).unwrap();

    let mut first = Gateway::command(&url, data.path());
    first.arg("--join-token-file").arg(&token_file);
    let gateway = Gateway::start(first);
    soon(models(&gateway.url)).await;
    ask(&gateway.url, body(8)).await.end().await.assert_undisturbed(8);

    drop(operator);
    ask(&gateway.url, body(8)).await.end().await.assert_undisturbed(8);
    gateway.terminate();
    let (status, log) = gateway.ended();
    assert!(status.success(), "{log}");
    let secret = token.split('.').nth(2).unwrap();
    for hidden in [secret, "\"content\"", "\\\"content\\\""] {
        assert!(!log.contains(hidden), "`{hidden}` is in the log");
    }

    let gateway = Gateway::start(Gateway::command(&url, data.path()));
    let mut reading = ask(&gateway.url, body(12)).await;
    reading.tokens(8).await;
    gateway.terminate();
    while tokio::net::TcpStream::connect(gateway.url.trim_start_matches("http://")).await.is_ok() {
        tokio::task::yield_now().await;
    }
    workers[0].release();
    reading.end().await.assert_undisturbed(12);
    let (status, log) = gateway.ended();
    assert!(status.success(), "{log}");
    soon(workers[0].idle()).await;
}

/// Waits until it knows a model.
async fn models(url: &str) {
    let client = reqwest::Client::new();
    loop {
        let text = client.get(format!("{url}/v1/models")).send().await.unwrap().text().await.unwrap();
        if text.contains("\"llm/tiny\"") {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_certificate_past_a_third_of_its_life_is_renewed_and_kept() {
    let authority = Arc::new(authority());
    let operator = Operator::start(&authority, table(&[]));
    let edge = Identity::gateway("edge").unwrap();
    // Certificates begin an hour back, so that more than a third of this one is over.
    let soon_over = Duration::from_secs(1800);
    let old = authority.credentials(&edge, &[], SystemTime::now(), soon_over).unwrap();
    let data = tempfile::tempdir().unwrap();
    let current = tokio::sync::watch::Sender::new(old);
    let mut changed = current.subscribe();
    let link = tandem_gateway::Operator {
        urls: vec![operator.url()],
        credentials: current.into(),
        identity: data.path().to_owned(),
        advertise: String::new(),
        issuer: Arc::default(),
    };
    let renewing = tokio::spawn(keep_renewed(link));
    soon(changed.changed()).await.unwrap();
    let new = changed.borrow().clone();
    assert_eq!(new.identity().unwrap(), edge);
    assert!(!new.wants_renewal(SystemTime::now()).unwrap());
    assert_eq!(Credentials::load(data.path()).unwrap().certificate_pem, new.certificate_pem);
    renewing.abort();
}

#[test]
fn it_says_what_to_do_when_it_cannot_start() {
    let data = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("https://{closed}");
    let said = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(&mut Gateway::command(&url, data.path())).contains("--join-token-file"));
    let error = said(Gateway::command(&url, data.path()).args(["--join-token", "s3cret"]));
    assert!(error.contains("not a join token") && !error.contains("s3cret"), "{error}");
    let token = tandem_pki::JoinToken::generate(support::authority().fingerprint()).to_string();
    assert!(
        said(Gateway::command(&url, data.path()).args(["--join-token", &token]))
            .contains("no operator answers")
    );
}
