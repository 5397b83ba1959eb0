//! Disks that get full and clocks that are stepped.
//!
//! A small tmpfs stands for a disk; `scripts/chaos` runs everything in a mount namespace of its own, so that nothing
//! stays mounted. libfaketime steps the clock of one process while it runs; its monotonic clock goes on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
}

impl Disk {
    /// Mounts one at `path`, for `owner`. Answers why it cannot.
    pub(crate) fn mount(path: &Path, megabytes: u32, owner: Option<&str>) -> Result<Self, String> {
        if std::env::var("CHAOS_MOUNTS").as_deref() != Ok("yes") {
            return Err("no mount namespace; run `make chaos` as root".to_owned());
        }
        fs::create_dir_all(path).map_err(|e| e.to_string())?;
        let size = format!("size={megabytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "shepherd-chaos"]).arg(path))?;
        if let Some(owner) = owner {
            run(Command::new("chown").arg(owner).arg(path))?;
        }
        Ok(Self { path: path.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves not one byte free.
    pub(crate) fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).unwrap();
        for size in [65_536, 4096, 1] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
    }

    /// Gives the space back.
    pub(crate) fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The clock of one process, or of the processes that take each other's place.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// A clock that is right until it is stepped. Answers why it cannot be stepped.
    pub(crate) fn new(file: PathBuf) -> Result<Self, String> {
        let library = fs::read_dir("/usr/lib").ok().into_iter().flatten().filter_map(Result::ok);
        let library = library.map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|path| path.is_file());
        let library = library.ok_or("libfaketime is not installed; `scripts/install-packages chaos` does")?;
        let clock = Self { file, library };
        clock.set(0);
        Ok(clock)
    }

    /// Seconds that the clock is ahead of this machine's.
    pub(crate) fn set(&self, ahead: i64) {
        // By renaming: half a file is no offset.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{ahead:+}\n")).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// What the process has to have in its environment. With `own_malloc` the C library's replaces the program's:
    /// Redis' jemalloc asks for the time before libfaketime is ready.
    pub(crate) fn environment(&self, own_malloc: bool) -> Vec<(String, String)> {
        let mut preload = self.library.display().to_string();
        if own_malloc {
            preload.push_str(":libc.so.6");
        }
        [
            ("LD_PRELOAD", preload),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}
