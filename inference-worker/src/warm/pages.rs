//! Pages of weight files: which the system has in memory, how the others get there, and how fast.
//!
//! They are read, not touched through the mapping: a file that somebody cuts off ends a read with a word, and a touch with SIGBUS.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tandem_kernels::map::{Access, MappedFile};
use tandem_worker_api::WeightFile;

use crate::loading::LoadError;
use crate::verified::unreadable;
use crate::worker::Load;

/// Bytes that are asked about, announced and read at once.
const PART: usize = 8 << 20;
/// Bytes that are read from memory in each pass, to learn how fast that is.
const SAMPLE: u64 = 64 << 20;

/// All files of a model.
#[derive(Default)]
pub(super) struct Pages {
    files: Vec<Mapped>,
    bytes: u64,
    block: Vec<u8>,
}

struct Mapped {
    file: File,
    map: MappedFile,
    /// Whether the system tells which of its pages are in memory.
    told: bool,
}

/// What one look has found, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    /// Were not in memory.
    pub(super) absent_before: u64,
    /// Are not although they were read, or nobody tells.
    pub(super) absent: u64,
    /// Of files of which the system does not tell.
    pub(super) untold: u64,
    /// What asking the system took, without reading.
    pub(super) asking: Duration,
}

impl Pages {
    pub(super) fn open(files: &[WeightFile]) -> Result<Self, LoadError> {
        let open = |file: &WeightFile| {
            let map = MappedFile::open(&file.path)?;
            let told = is_told(&file.path).map_err(unreadable(&file.path))?;
            let file = File::open(&file.path).map_err(unreadable(&file.path))?;
            if !told {
                tracing::warn!(path = %map.path().display(), "not owned by this user: the system does not tell what is in memory");
            }
            Ok(Mapped { file, map, told })
        };
        let files = files.iter().map(open).collect::<Result<Vec<_>, LoadError>>()?;
        let bytes = files.iter().map(|file| file.map.len() as u64).sum();
        Ok(Self { files, bytes, block: vec![0; PART] })
    }

    /// Of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads whatever is not in memory, in order, and asks what has become of it; none if it is over in between.
    pub(super) fn read_in(
        &mut self,
        rates: &mut Rates,
        load: &Load,
        over: &impl Fn() -> bool,
    ) -> Result<Option<Pass>, LoadError> {
        let untold = self.files.iter().filter(|file| !file.told).map(|file| file.map.len() as u64).sum();
        let mut pass = Pass { absent_before: 0, absent: untold, untold, asking: Duration::ZERO };
        let mut sample = SAMPLE;
        load.done.store(0, Ordering::Relaxed);
        // Nothing is known of the others, and they are left as they are.
        for Mapped { file, map, .. } in self.files.iter().filter(|file| file.told) {
            for start in (0..map.len()).step_by(PART) {
                if over() {
                    return Ok(None);
                }
                let part = start..map.len().min(start + PART);
                let absent = absent(map, &part, &mut pass.asking)?;
                pass.absent_before += length(&absent);
                if !absent.is_empty() {
                    announce(map, part.end);
                }
                for range in &absent {
                    rates.disk.add(read(file, map, range, &mut self.block)?);
                }
                if absent.is_empty() && sample > 0 {
                    rates.memory.add(read(file, map, &part, &mut self.block)?);
                    sample = sample.saturating_sub(part.len() as u64);
                }
                load.done.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
        }
        if pass.absent_before > 0 {
            // Reading the later ones may have cost the earlier ones.
            for Mapped { map, .. } in self.files.iter().filter(|file| file.told) {
                for start in (0..map.len()).step_by(PART) {
                    let part = start..map.len().min(start + PART);
                    pass.absent += length(&absent(map, &part, &mut pass.asking)?);
                }
            }
        }
        Ok(Some(pass))
    }
}

/// Linux says of files that one neither owns nor may write to that all of them is in memory, whatever is.
#[cfg(target_os = "linux")]
fn is_told(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let owned = fs::metadata(path)?.uid() == fs::metadata("/proc/self")?.uid();
    Ok(owned || File::options().write(true).open(path).is_ok())
}

#[cfg(not(target_os = "linux"))]
fn is_told(_: &Path) -> io::Result<bool> {
    Ok(true)
}

fn absent(
    map: &MappedFile,
    part: &Range<usize>,
    asking: &mut Duration,
) -> Result<Vec<Range<usize>>, LoadError> {
    let start = Instant::now();
    let absent = map.absent(part.start, part.len()).map_err(unreadable(map.path()))?;
    *asking += start.elapsed();
    Ok(absent)
}

fn length(ranges: &[Range<usize>]) -> u64 {
    ranges.iter().map(|range| range.len() as u64).sum()
}

/// The disk may begin with the next part while this one is copied.
fn announce(map: &MappedFile, offset: usize) {
    if let Err(error) = map.advise_range(Access::WillNeed, offset, PART) {
        tracing::debug!(path = %map.path().display(), %error, "a hint is refused");
    }
}

/// Reads a range that is at most a part; how much in what time.
fn read(
    file: &File,
    map: &MappedFile,
    range: &Range<usize>,
    block: &mut [u8],
) -> Result<(u64, Duration), LoadError> {
    let start = Instant::now();
    file.read_exact_at(&mut block[..range.len()], range.start as u64).map_err(|error| {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                LoadError::Changed { path: map.path().to_owned(), what: "it was cut off" }
            }
            _ => unreadable(map.path())(error),
        }
    })?;
    Ok((range.len() as u64, start.elapsed()))
}

/// Measured speeds.
#[derive(Debug, Default)]
pub(super) struct Rates {
    disk: Rate,
    memory: Rate,
}

impl Rates {
    /// Bytes a second that came from a disk; 0 if none did yet.
    pub(super) fn disk(&self) -> u64 {
        self.disk.per_second()
    }

    /// Bytes a second that were in memory; 0 if none were read yet.
    pub(super) fn memory(&self) -> u64 {
        self.memory.per_second()
    }
}

/// Bytes over time, of late.
#[derive(Debug, Default)]
struct Rate {
    bytes: u64,
    time: Duration,
}

impl Rate {
    /// Older measurements weigh half after so much time spent on newer ones.
    const LATE: Duration = Duration::from_secs(60);

    fn add(&mut self, (bytes, time): (u64, Duration)) {
        if self.time > Self::LATE {
            (self.bytes, self.time) = (self.bytes / 2, self.time / 2);
        }
        (self.bytes, self.time) = (self.bytes.saturating_add(bytes), self.time.saturating_add(time));
    }

    fn per_second(&self) -> u64 {
        if self.time.is_zero() { 0 } else { (self.bytes as f64 / self.time.as_secs_f64()) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_forget_slowly() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), 0);
        rate.add((1000, Duration::from_secs(100)));
        assert_eq!(rate.per_second(), 10);
        for _ in 0..30 {
            rate.add((6000, Duration::from_secs(20)));
        }
        assert!((295..=300).contains(&rate.per_second()), "{rate:?}");
    }
}
