//! What was published under a name, newest and older.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::Content;

/// Files by their names.
pub(crate) type Files = BTreeMap<String, Content>;

/// Every commit of a name.
#[derive(Default)]
pub(crate) struct Repository {
    commits: BTreeMap<String, Files>,
    newest: String,
}

impl Repository {
    pub(crate) fn publish(&mut self, files: Files) -> String {
        let mut digest = Sha256::new();
        for (name, content) in &files {
            digest.update(format!("{}  {name}\n", content.sha256()));
        }
        let mut commit = hex::encode(digest.finalize());
        commit.truncate(40);
        self.newest.clone_from(&commit);
        self.commits.insert(commit.clone(), files);
        commit
    }

    pub(crate) fn newest(&self) -> Option<&Files> {
        self.commits.get(&self.newest)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Files> {
        self.commits.values()
    }

    /// The commit that a branch or commit is, and its files. There is one branch, `main`, and a pull request, `refs/pr/1`,
    /// that is the same.
    pub(crate) fn at(&self, revision: &str) -> Option<(&str, &Files)> {
        let commit = if matches!(revision, "main" | "refs/pr/1") { self.newest.as_str() } else { revision };
        self.commits.get_key_value(commit).map(|(commit, files)| (commit.as_str(), files))
    }
}

/// As `sha256sum` writes it.
pub(crate) fn sums(files: &Files) -> String {
    files.iter().map(|(name, content)| format!("{}  {name}\n", content.sha256())).collect()
}
