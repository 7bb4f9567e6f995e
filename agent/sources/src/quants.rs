//! Which quants a repository has, by the names of its files.

use std::collections::BTreeMap;

use backon::Retryable;
use futures::{StreamExt, TryStreamExt, stream};
use tandem_worker_api::Sha256Hex;

use crate::listing::{models, quant_of};
use crate::resolve::{There, opened, there};
use crate::{Access, ListedFile, Origin, ResolveError, Secret, Source};

/// Lengths that are asked for at once, where the place doesn't list them.
const AT_ONCE: usize = 8;

/// The files of one model in one quant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantListing {
    /// What to write as `quant` in a manifest; the files' own name where it says no quant.
    pub quant: String,
    /// In shard order; of an incomplete model those that are there.
    pub files: Vec<QuantFile>,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantFile {
    /// Relative to the source, with `/`.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of the whole file, where the place says it.
    pub sha256: Option<Sha256Hex>,
}

impl QuantListing {
    /// All files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }
}

/// Groups the model files of a source by quant, smallest first. With a file or folder named in the source, only what lies
/// there.
///
/// # Errors
/// When the place can't be listed; see [`ResolveError`].
pub async fn quants(
    source: &Source,
    credential: Option<&Secret>,
    access: &Access,
) -> Result<Vec<QuantListing>, ResolveError> {
    let origin = opened(source, credential, access).await?;
    let There { files: there, lengths: known, .. } = there(&origin, source, access).await?;
    let there = match &source.file {
        Some(name) => crate::listing::by_name(&there, name)?,
        None => there,
    };
    let models = models(&there)?;
    let lengths = lengths(&origin, models.iter().flatten(), known, access).await?;
    let listing = |files: &Vec<ListedFile>| {
        let file = |file: &ListedFile| QuantFile {
            name: file.name.clone(),
            bytes: lengths.get(&file.name).copied().unwrap_or_default(),
            sha256: Some(file.sha256),
        };
        Some(QuantListing { quant: quant_of(&files.first()?.name), files: files.iter().map(file).collect() })
    };
    let mut listings: Vec<QuantListing> = models.iter().filter_map(listing).collect();
    listings.sort_by(|a, b| (a.bytes(), &a.quant).cmp(&(b.bytes(), &b.quant)));
    Ok(listings)
}

/// Asks for one byte of each file whose length nobody has said yet.
async fn lengths<'a>(
    origin: &Origin,
    files: impl Iterator<Item = &'a ListedFile>,
    known: BTreeMap<String, u64>,
    access: &Access,
) -> Result<BTreeMap<String, u64>, ResolveError> {
    let asked = files.filter(|file| !known.contains_key(&file.name)).map(|file| async move {
        let read = || async {
            let body = origin.read(&file.name, Some(0..1)).await?;
            body.file_length.ok_or_else(|| ResolveError::NoLength(file.name.clone()))
        };
        let retried =
            read.retry(access.backoff()).when(ResolveError::is_transient).adjust(ResolveError::wait);
        Ok::<_, ResolveError>((file.name.clone(), retried.await?))
    });
    let asked: Vec<_> = asked.collect();
    let found: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(known.into_iter().chain(found).collect())
}
