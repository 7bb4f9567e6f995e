//! Where the operator is and who we are: `tandem.yaml`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What `tandem.yaml` holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// `https://HOST:PORT` of an operator.
    pub(crate) operator: String,
    /// Folder with certificate, key and authority; relative to the file.
    pub(crate) credentials: PathBuf,
}

/// Reads the file that was named, or the one in its usual place.
pub(crate) fn load(named: Option<&Path>) -> Result<Config> {
    let path = named.map_or_else(usual_place, |path| Ok(path.to_owned()))?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "{} does not exist. The operator writes DATA-DIR/admin/tandem.yaml on its first start: point \
             TANDEM_CONFIG or --config at it, or copy that folder",
            path.display()
        ),
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", path.display())),
    };
    let mut config: Config =
        serde_yaml::from_str(&text).with_context(|| format!("{} is not a configuration", path.display()))?;
    if let Some(folder) = path.parent() {
        config.credentials = folder.join(&config.credentials);
    }
    Ok(config)
}

fn usual_place() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("XDG_CONFIG_HOME") {
        return Ok(PathBuf::from(dir).join("tandem/tandem.yaml"));
    }
    let home = env::var_os("HOME").context("HOME is not set: name the configuration file with --config")?;
    Ok(PathBuf::from(home).join(".config/tandem/tandem.yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tandem.yaml");
        fs::write(&path, "operator: https://127.0.0.1:7443\ncredentials: .\n").unwrap();
        let config = load(Some(&path)).unwrap();
        assert_eq!(config.operator, "https://127.0.0.1:7443");
        assert_eq!(config.credentials, dir.path().join("."));
    }

    #[test]
    fn a_missing_file_says_where_one_comes_from() {
        let error = load(Some(Path::new("/nonexistent/tandem.yaml"))).unwrap_err();
        assert!(error.to_string().contains("admin/tandem.yaml"), "{error}");
    }
}
