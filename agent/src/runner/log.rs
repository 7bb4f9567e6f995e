//! A child's output in a file of bounded size: when it is full, it becomes `.1` and a new one starts.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::{File, OpenOptions, rename};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Size at which a log is turned over; two of them are kept. In bytes.
const FULL: u64 = 8 << 20;

/// Copies until the writers of `output` are gone. A disk that takes nothing loses lines, and holds nobody up.
pub(crate) async fn keep(mut output: impl AsyncRead + Unpin, path: PathBuf) {
    let mut log = None;
    let mut block = vec![0; 16 * 1024];
    loop {
        match output.read(&mut block).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if let Err(error) = append(&mut log, &path, &block[..read], FULL).await {
                    tracing::debug!(log = %path.display(), %error, "log lines are lost");
                    log = None;
                }
            }
        }
    }
}

struct Open {
    file: File,
    size: u64,
}

async fn append(log: &mut Option<Open>, path: &Path, bytes: &[u8], full: u64) -> io::Result<()> {
    if log.as_ref().is_some_and(|open| open.size >= full) {
        *log = None;
        rename(path, path.with_extension("1")).await?;
    }
    let open = match log {
        Some(open) => open,
        None => {
            let file = OpenOptions::new().create(true).append(true).open(path).await?;
            let size = file.metadata().await?.len();
            log.insert(Open { file, size })
        }
    };
    open.file.write_all(bytes).await?;
    open.file.flush().await?;
    open.size += bytes.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_never_holds_more_than_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = None;
        for line in 0..100 {
            append(&mut log, &path, format!("line {line:03}\n").as_bytes(), 90).await.unwrap();
        }
        let now = std::fs::read_to_string(&path).unwrap();
        let before = std::fs::read_to_string(dir.path().join("log.1")).unwrap();
        assert!(now.ends_with("line 099\n") && now.len() <= 99, "{now}");
        assert_eq!(before.len(), 90);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_stops_nobody() {
        let output: &[u8] = b"some lines\n";
        keep(output, PathBuf::from("/proc/no/such/folder/log")).await;
    }
}
