//! Service definitions: text only, written by the caller.
//!
//! Agent and runner are two services, so that an agent's restart or upgrade touches no worker.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// In the data folder; the agent deletes nothing of it, and needs it once.
pub(super) const TOKEN_FILE: &str = "join-token";

/// Who starts services here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Platform {
    Systemd,
    Launchd,
}

impl Platform {
    pub(super) fn here() -> Result<Self> {
        match std::env::consts::OS {
            "linux" => Ok(Self::Systemd),
            "macos" => Ok(Self::Launchd),
            other => {
                bail!("there is no service for {other}: run `tandem-agent run` under your own supervisor")
            }
        }
    }

    pub(super) fn manager(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Launchd => "launchd",
        }
    }

    /// Whether it really runs this machine: a container on Linux mostly has no systemd.
    pub(super) fn present(self) -> bool {
        match self {
            Self::Systemd => Path::new("/run/systemd/system").is_dir(),
            Self::Launchd => Path::new("/Library/LaunchDaemons").is_dir(),
        }
    }
}

/// How the agent is to run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) program: PathBuf,
    pub(super) operator: String,
    pub(super) name: String,
    pub(super) address: Option<String>,
    pub(super) data_dir: PathBuf,
    /// Whether it joins by a token; the agent wants to read the file that it is given, also where it has joined before.
    pub(super) joins: bool,
    pub(super) gateway_listen: Option<String>,
}

/// One file that defines a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) label: &'static str,
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Runner first: the agent needs it.
pub(super) fn services(platform: Platform, settings: &Settings) -> Vec<Service> {
    let data = settings.data_dir.display().to_string();
    let program = settings.program.display().to_string();
    let runner = vec![
        program.clone(),
        "runner".into(),
        "--socket".into(),
        format!("{data}/runner/runner.sock"),
        "--dir".into(),
        format!("{data}/runner"),
    ];
    let mut agent = vec![
        program,
        "run".into(),
        "--operator".into(),
        settings.operator.clone(),
        "--name".into(),
        settings.name.clone(),
        "--data-dir".into(),
        data.clone(),
    ];
    if settings.joins {
        agent.extend(["--join-token-file".into(), format!("{data}/{TOKEN_FILE}")]);
    }
    agent.push("--external-runner".into());
    for (flag, value) in [("--address", &settings.address), ("--gateway-listen", &settings.gateway_listen)] {
        if let Some(value) = value {
            agent.extend([flag.to_owned(), value.clone()]);
        }
    }
    let [runner_label, agent_label] = labels(platform);
    let [runner_path, agent_path] = paths(platform);
    let (runner_text, agent_text) = match platform {
        Platform::Systemd => (
            systemd("Tandem runner: parent of the inference workers", &runner, &data, None),
            systemd("Tandem agent", &agent, &data, Some("tandem-runner.service")),
        ),
        Platform::Launchd => (launchd(runner_label, &runner, &data), launchd(agent_label, &agent, &data)),
    };
    vec![
        Service { label: runner_label, path: runner_path, text: runner_text },
        Service { label: agent_label, path: agent_path, text: agent_text },
    ]
}

/// Where the definitions lie, runner first.
pub(super) fn paths(platform: Platform) -> [PathBuf; 2] {
    match platform {
        Platform::Systemd => {
            ["tandem-runner", "tandem-agent"].map(|name| format!("/etc/systemd/system/{name}.service").into())
        }
        Platform::Launchd => {
            labels(platform).map(|label| format!("/Library/LaunchDaemons/{label}.plist").into())
        }
    }
}

/// What to run once the files are written.
pub(super) fn start_commands(platform: Platform, services: &[Service]) -> Vec<Vec<String>> {
    match platform {
        // What runs already stays up as a runner, and takes its new definition as an agent.
        Platform::Systemd => {
            let [runner, agent] = labels(platform);
            [
                "daemon-reload".to_owned(),
                format!("enable {runner} {agent}"),
                format!("start {runner}"),
                format!("restart {agent}"),
            ]
            .map(|rest| words(&format!("systemctl {rest}")))
            .into()
        }
        Platform::Launchd => services
            .iter()
            .map(|service| {
                let mut command = words("launchctl bootstrap system");
                command.push(service.path.display().to_string());
                command
            })
            .collect(),
    }
}

/// What to run before the files are removed; the agent first.
pub(super) fn stop_commands(platform: Platform) -> Vec<Vec<String>> {
    let [runner, agent] = labels(platform);
    [agent, runner]
        .map(|label| match platform {
            Platform::Systemd => words(&format!("systemctl disable --now {label}")),
            Platform::Launchd => words(&format!("launchctl bootout system/{label}")),
        })
        .into()
}

fn labels(platform: Platform) -> [&'static str; 2] {
    match platform {
        Platform::Systemd => ["tandem-runner.service", "tandem-agent.service"],
        Platform::Launchd => ["dev.tandem.runner", "dev.tandem.agent"],
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// `KillMode=mixed` for both: the runner gets the time to drain its workers, the agent has no children.
fn systemd(description: &str, command: &[String], data: &str, needs: Option<&str>) -> String {
    let command: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    let needs = needs.map(|unit| format!("Wants={unit}\nAfter={unit}\n")).unwrap_or_default();
    format!(
        "[Unit]\nDescription={description}\nDocumentation=https://github.com/tandem-inference/tandem\n\
         Wants=network-online.target\nAfter=network-online.target\n{needs}\n\
         [Service]\nExecStart={}\nRestart=always\nRestartSec=2\nKillMode=mixed\nTimeoutStopSec=120\n\
         LimitNOFILE=65536\nLimitMEMLOCK=infinity\nNoNewPrivileges=yes\nProtectSystem=full\nReadWritePaths={}\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        command.join(" "),
        quoted(data)
    )
}

/// systemd splits at blanks and expands `%` and `$`.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if escaped.contains([' ', '\t', '"', '\'']) { format!("\"{escaped}\"") } else { escaped }
}

fn launchd(label: &str, command: &[String], data: &str) -> String {
    let arguments: String =
        command.iter().map(|word| format!("    <string>{}</string>\n", xml(word))).collect();
    let log = xml(&format!("{data}/{label}.log"));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n<dict>\n  <key>Label</key>\n  <string>{label}</string>\n  \
         <key>ProgramArguments</key>\n  <array>\n{arguments}  </array>\n  <key>RunAtLoad</key>\n  <true/>\n  \
         <key>KeepAlive</key>\n  <true/>\n  <key>ExitTimeOut</key>\n  <integer>120</integer>\n  \
         <key>ProcessType</key>\n  <string>Interactive</string>\n  <key>StandardErrorPath</key>\n  \
         <string>{log}</string>\n  <key>StandardOutPath</key>\n  <string>{log}</string>\n</dict>\n</plist>\n"
    )
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            program: "/usr/local/bin/tandem-agent".into(),
            operator: "https://10.0.0.5:7443".into(),
            name: "mac-a".into(),
            address: Some("10.0.0.7".into()),
            data_dir: "/var/lib/tandem data".into(),
            joins: true,
            gateway_listen: None,
        }
    }

    #[test]
    fn the_agent_of_systemd_starts_after_its_runner() {
        let [runner, agent] = services(Platform::Systemd, &settings()).try_into().unwrap();
        assert_eq!(runner.path, Path::new("/etc/systemd/system/tandem-runner.service"));
        let start = "/usr/local/bin/tandem-agent runner --socket \"/var/lib/tandem data/runner/runner.sock\"";
        assert!(runner.text.contains(&format!("ExecStart={start} --dir \"/var/lib/tandem data/runner\"\n")));
        assert!(!runner.text.contains("tandem-runner.service"), "it waits for nobody");
        assert_eq!(
            agent.text,
            "[Unit]
Description=Tandem agent
Documentation=https://github.com/tandem-inference/tandem
Wants=network-online.target
After=network-online.target
Wants=tandem-runner.service
After=tandem-runner.service

[Service]
ExecStart=/usr/local/bin/tandem-agent run --operator https://10.0.0.5:7443 --name mac-a --data-dir \"/var/lib/tandem data\" --join-token-file \"/var/lib/tandem data/join-token\" --external-runner --address 10.0.0.7
Restart=always
RestartSec=2
KillMode=mixed
TimeoutStopSec=120
LimitNOFILE=65536
LimitMEMLOCK=infinity
NoNewPrivileges=yes
ProtectSystem=full
ReadWritePaths=\"/var/lib/tandem data\"

[Install]
WantedBy=multi-user.target
"
        );
    }

    #[test]
    fn who_has_joined_before_is_given_no_file_that_may_not_exist() {
        let [_, agent] =
            services(Platform::Systemd, &Settings { joins: false, ..settings() }).try_into().unwrap();
        assert!(!agent.text.contains("--join-token-file"), "{}", agent.text);
    }

    #[test]
    fn a_property_list_keeps_its_program_alive_and_escapes_what_xml_would_read() {
        let settings = Settings { operator: "https://a/?x=1&y=<z>".into(), ..settings() };
        let [runner, agent] = services(Platform::Launchd, &settings).try_into().unwrap();
        assert_eq!(agent.path, Path::new("/Library/LaunchDaemons/dev.tandem.agent.plist"));
        assert!(agent.text.contains("<string>https://a/?x=1&amp;y=&lt;z&gt;</string>"));
        assert_eq!(
            runner.text,
            r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>dev.tandem.runner</string>
  <key>ProgramArguments</key>
  <array>
    <string>/usr/local/bin/tandem-agent</string>
    <string>runner</string>
    <string>--socket</string>
    <string>/var/lib/tandem data/runner/runner.sock</string>
    <string>--dir</string>
    <string>/var/lib/tandem data/runner</string>
  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <true/>
  <key>ExitTimeOut</key>
  <integer>120</integer>
  <key>ProcessType</key>
  <string>Interactive</string>
  <key>StandardErrorPath</key>
  <string>/var/lib/tandem data/dev.tandem.runner.log</string>
  <key>StandardOutPath</key>
  <string>/var/lib/tandem data/dev.tandem.runner.log</string>
</dict>
</plist>
"#
        );
    }

    #[test]
    fn systemd_words_are_quoted_and_escaped() {
        assert_eq!(quoted("a b%c$d\"e"), "\"a b%%c$$d\\\"e\"");
        assert_eq!(quoted("--flag=x"), "--flag=x");
    }

    #[test]
    fn what_is_started_first_is_stopped_last() {
        let services = services(Platform::Systemd, &settings());
        let start: Vec<String> =
            start_commands(Platform::Systemd, &services).iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            start[2..],
            ["systemctl start tandem-runner.service", "systemctl restart tandem-agent.service"]
        );
        assert!(stop_commands(Platform::Systemd)[0].concat().contains("tandem-agent"));
    }
}
