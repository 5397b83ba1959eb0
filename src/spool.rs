//! A crash-safe queue of lines on disk, bounded and ordered.
//!
//! A spool is two files in a folder. The newer one is written until it holds half of the maximum size, and then replaces the older
//! one; lines still in that one are lost and counted. A second process with the same spool uses separate files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::regular_file::{make_own_folder, open_own};

/// Maximum number of processes that share a folder.
const SHARES: u32 = 16;

/// A spool. Files are created with the first line.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    name: String,
    most_bytes: u64,
    files: Option<Files>,
}

#[derive(Debug)]
struct Files {
    older: PathBuf,
    newer: PathBuf,
    /// Number of bytes removed from the older file, or else the newer one.
    taken: u64,
    /// Number of losses; positions from before a loss are invalid.
    losses: u64,
    /// Lock, held while the files are in use.
    _lock: File,
}

/// Position after the lines that [`Spool::peek`] returned, for [`Spool::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    bytes: u64,
    losses: u64,
}

/// Checks that `folder` is writable: creates it if necessary, then writes and removes a file.
///
/// # Errors
/// Why nothing can be stored there.
pub fn probe(folder: &Path) -> io::Result<()> {
    make_own_folder(folder)?;
    let file = folder.join(format!(".probe-{}", std::process::id()));
    // Left behind by a process of the same ID that was killed.
    drop(fs::remove_file(&file));
    open_own(OpenOptions::new().write(true).create_new(true), &file)?.write_all(b"x")?;
    fs::remove_file(&file)
}

impl Spool {
    /// Returns the spool `name` in `folder` that holds about `most_bytes` at most.
    #[must_use]
    pub fn new(folder: PathBuf, name: String, most_bytes: u64) -> Self {
        Self { folder, name, most_bytes, files: None }
    }

    /// Appends a line, and syncs it to disk. Returns the number of bytes dropped to make room.
    ///
    /// # Errors
    /// If the line cannot be written.
    pub fn put(&mut self, line: &str) -> io::Result<u64> {
        let most = self.most_bytes / 2;
        let files = self.files()?;
        let mut lost = 0;
        if length(&files.newer) + line.len() as u64 > most {
            lost = length(&files.older).saturating_sub(files.taken);
            let replaces = files.older.exists();
            fs::rename(&files.newer, &files.older)?;
            if replaces {
                files.taken = 0;
                files.losses += 1;
            }
        }
        append(&files.newer, line)?;
        Ok(lost)
    }

    /// Returns up to `most` of the oldest lines without removing them; none if the spool is empty.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn peek(&mut self, most: usize) -> io::Result<(Vec<String>, Seen)> {
        let nothing = (Vec::new(), Seen { bytes: 0, losses: 0 });
        if self.files.is_none() && !self.may_hold_something() {
            return Ok(nothing);
        }
        let files = self.files()?;
        let current = if files.older.exists() { &files.older } else { &files.newer };
        let mut file = match open_own(OpenOptions::new().read(true), current) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing),
            other => other?,
        };
        file.seek(SeekFrom::Start(files.taken))?;
        let mut reader = BufReader::new(file);
        let mut lines = Vec::new();
        let mut seen = Seen { bytes: 0, losses: files.losses };
        while lines.len() < most {
            let mut line = Vec::new();
            let read = reader.read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            seen.bytes += read as u64;
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        Ok((lines, seen))
    }

    /// Removes the lines before `seen`, except those that were dropped meanwhile.
    ///
    /// # Errors
    /// If the disk fails; the lines are returned again.
    pub fn take(&mut self, seen: Seen) -> io::Result<()> {
        let Some(files) = self.files.as_mut().filter(|files| files.losses == seen.losses) else { return Ok(()) };
        files.taken += seen.bytes;
        let current = if files.older.exists() { &files.older } else { &files.newer };
        if files.taken >= length(current) {
            match fs::remove_file(current) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => files.taken = 0,
            }
        }
        Ok(())
    }

    fn may_hold_something(&self) -> bool {
        self.folder.read_dir().is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(&self.name)))
        })
    }

    /// Returns the first pair of files that no other process uses.
    fn files(&mut self) -> io::Result<&mut Files> {
        let files = match self.files.take() {
            Some(files) => files,
            None => open(&self.folder, &self.name)?,
        };
        Ok(self.files.insert(files))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // An empty spool leaves no files.
        if let Some(files) = &self.files
            && !files.older.exists()
            && !files.newer.exists()
        {
            drop(fs::remove_file(files.newer.with_extension("lock")));
        }
    }
}

fn open(folder: &Path, name: &str) -> io::Result<Files> {
    make_own_folder(folder)?;
    for share in 0..SHARES {
        let path = |extension: &str| folder.join(format!("{name}.{share}.{extension}"));
        let lock = open_own(OpenOptions::new().create(true).append(true), &path("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        return Ok(Files { older: path("older"), newer: path("newer"), taken: 0, losses: 0, _lock: lock });
    }
    Err(io::Error::other("too many processes share this spool directory"))
}

/// Appends a line. If a crash or a full disk tore the previous line, that line is terminated first. A line that was written only
/// partially is removed.
fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = open_own(OpenOptions::new().create(true).read(true).append(true), path)?;
    let whole = file.metadata()?.len();
    let mut text = String::with_capacity(line.len() + 2);
    if ends_torn(&mut file, whole)? {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
    if written.is_err() {
        // If this fails too, the next line is still written on its own.
        drop(file.set_len(whole));
    }
    written
}

fn ends_torn(file: &mut File, length: u64) -> io::Result<bool> {
    if length == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(length - 1))?;
    file.read_exact(&mut last)?;
    Ok(last != [b'\n'])
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_detects_an_unwritable_folder() {
        let folder = std::env::temp_dir().join(format!("shepherd-spool-probe-{}", std::process::id()));
        probe(&folder.join("deep")).unwrap();
        assert_eq!(fs::read_dir(folder.join("deep")).unwrap().count(), 0, "nothing is left there");
        fs::write(folder.join("file"), "").unwrap();
        std::os::unix::fs::symlink("deep", folder.join("link")).unwrap();
        for unusable in [folder.join("file"), folder.join("file/below"), folder.join("link"), "/proc/shepherd".into()] {
            assert!(probe(&unusable).is_err(), "{}", unusable.display());
            assert!(Spool::new(unusable.clone(), "s".into(), 1000).put("x").is_err(), "{}", unusable.display());
        }
        // A link in place of the probe's file is replaced, not followed.
        fs::write(folder.join("elsewhere"), "kept").unwrap();
        let probed = folder.join("deep").join(format!(".probe-{}", std::process::id()));
        std::os::unix::fs::symlink("../elsewhere", probed).unwrap();
        probe(&folder.join("deep")).unwrap();
        assert_eq!(fs::read_to_string(folder.join("elsewhere")).unwrap(), "kept");
        fs::remove_dir_all(&folder).unwrap();
    }

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("shepherd-spool-{}", uuid::Uuid::new_v4()))
    }

    fn all(spool: &mut Spool) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let (lines, seen) = spool.peek(2).unwrap();
            if lines.is_empty() {
                return all;
            }
            all.extend(lines);
            spool.take(seen).unwrap();
        }
    }

    #[test]
    fn lines_are_returned_in_order_and_files_are_removed() {
        let folder = folder();
        let mut spool = Spool::new(folder.clone(), "s".into(), 1000);
        assert!(spool.peek(5).unwrap().0.is_empty());
        assert!(!folder.exists(), "nothing is made before there is a need");
        for n in 0..5 {
            spool.put(&n.to_string()).unwrap();
        }
        drop(spool);
        // A crash in the middle of a line.
        OpenOptions::new().append(true).open(folder.join("s.0.newer")).unwrap().write_all(b"cut").unwrap();
        let mut spool = Spool::new(folder.clone(), "s".into(), 1000);
        spool.put("5").unwrap();
        assert_eq!(all(&mut spool), ["0", "1", "2", "3", "4", "cut", "5"]);
        drop(spool);
        assert_eq!(folder.read_dir().unwrap().count(), 0);
        fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn full_spool_drops_and_counts_the_oldest_lines() {
        let folder = folder();
        let mut spool = Spool::new(folder.clone(), "s".into(), 40);
        let lost: u64 = (10..40).map(|n| spool.put(&n.to_string()).unwrap()).sum();
        let kept = all(&mut spool);
        assert_eq!(kept.last().map(String::as_str), Some("39"));
        assert_eq!(lost + 3 * kept.len() as u64, 90);
        assert!(kept.len() >= 6 && kept.is_sorted(), "{kept:?}");
        drop(spool);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn taken_lines_stay_taken_after_rotation() {
        let folder = folder();
        let mut spool = Spool::new(folder.clone(), "s".into(), 40);
        for n in 10..15 {
            spool.put(&n.to_string()).unwrap();
        }
        let (_, seen) = spool.peek(3).unwrap();
        for n in 15..18 {
            spool.put(&n.to_string()).unwrap();
        }
        spool.take(seen).unwrap();
        let (_, seen) = spool.peek(1).unwrap();
        assert_eq!(spool.peek(9).unwrap().0, ["13", "14", "15", "16"]);
        // Enough that the peeked line is dropped before it is taken; no other line is taken instead.
        for n in 18..29 {
            spool.put(&n.to_string()).unwrap();
        }
        let oldest = spool.peek(1).unwrap().0;
        spool.take(seen).unwrap();
        assert_eq!(spool.peek(1).unwrap().0, oldest);
        assert_eq!(all(&mut spool).last().map(String::as_str), Some("28"));
        drop(spool);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn line_after_a_torn_one_is_intact() {
        let folder = folder();
        let mut spool = Spool::new(folder.clone(), "s".into(), 1000);
        spool.put("1").unwrap();
        // As after a disk that became full in the middle of a line, while the spool is in use.
        OpenOptions::new().append(true).open(folder.join("s.0.newer")).unwrap().write_all(b"to").unwrap();
        spool.put("2").unwrap();
        spool.put("3").unwrap();
        assert_eq!(all(&mut spool), ["1", "to", "2", "3"]);
        // The torn line was taken before the next one is appended.
        spool.put("4").unwrap();
        OpenOptions::new().append(true).open(folder.join("s.0.newer")).unwrap().write_all(b"rn").unwrap();
        let (lines, seen) = spool.peek(1).unwrap();
        assert_eq!(lines, ["4"]);
        spool.take(seen).unwrap();
        spool.put("5").unwrap();
        assert_eq!(all(&mut spool), ["rn", "5"]);
        drop(spool);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn two_processes_use_separate_files() {
        let folder = folder();
        let (mut a, mut b) =
            (Spool::new(folder.clone(), "s".into(), 1000), Spool::new(folder.clone(), "s".into(), 1000));
        a.put("a").unwrap();
        b.put("b").unwrap();
        assert_eq!((all(&mut a), all(&mut b)), (vec!["a".into()], vec!["b".into()]));
        drop((a, b));
        fs::remove_dir_all(folder).unwrap();
    }
}
