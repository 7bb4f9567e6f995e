//! `tandem backup` and `tandem restore`: what the control plane keeps, as a file.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tandem_control_api::BackupRequest;

use crate::connection::Connection;
use crate::output::write;

/// Where to.
#[derive(Args)]
#[command(
    after_help = "The file holds the cluster's private keys and every secret: keep it where only you read.\n\
                  Example:\n  tandem backup tandem-2026-11-25.backup"
)]
pub(crate) struct BackupOptions {
    /// The file to write; it must not be there yet.
    file: PathBuf,
}

/// From where, and into which store.
#[derive(Args)]
#[command(
    after_help = "Runs `tandem-operator restore` with what follows. No operator may run with the store, and it has to be empty.\n\
                  Examples:\n  tandem restore FILE --data-dir op\n  \
                  tandem restore FILE --store etcd --etcd-endpoint https://voter-1:2379 --etcd-prefix /tandem"
)]
pub(crate) struct RestoreOptions {
    /// The backup.
    file: PathBuf,
    /// Flags of `tandem-operator run` that say which store.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "STORE FLAGS")]
    store: Vec<String>,
}

pub(crate) async fn backup(mut connection: Connection, options: &BackupOptions) -> Result<()> {
    let path = options.file.display();
    let asked = connection.fleet.backup(BackupRequest {}).await;
    let mut chunks = asked.map_err(|status| connection.explain(&status))?.into_inner();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&options.file)
        .with_context(|| format!("{path} can't be written: choose a name that is not there yet"))?;
    let mut bytes = 0;
    let copied = async {
        while let Some(chunk) = chunks.message().await.map_err(|status| connection.explain(&status))? {
            bytes += chunk.data.len();
            file.write_all(&chunk.data)?;
        }
        file.sync_all()?;
        anyhow::Ok(())
    };
    if let Err(error) = copied.await {
        drop(std::fs::remove_file(&options.file));
        return Err(error.context(format!("{path} is not whole, and was removed")));
    }
    write(&format!("{path} written: {bytes} bytes. Whoever reads it can be anybody in the cluster.\n"))
}

/// Becomes `tandem-operator`, which knows the stores; beside this program, else on the path.
pub(crate) fn restore(options: &RestoreOptions) -> Result<()> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("tandem-operator"));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| "tandem-operator".into());
    let error =
        std::process::Command::new(&program).arg("restore").arg(&options.file).args(&options.store).exec();
    bail!("{} can't be run: {error}; install it beside this program", program.display())
}
