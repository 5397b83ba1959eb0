//! Files named in settings or written by the monitor: regular files of bounded size, opened so that no file can block
//! the monitor.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Maximum size of the rules file, bytes.
pub const RULES: u64 = 1024 * 1024;

/// Reads a text file of at most `largest` bytes.
///
/// # Errors
/// If it is missing, not a regular file (opening a FIFO would block), too large, not UTF-8, or unreadable.
pub fn read(path: &Path, largest: u64) -> std::io::Result<String> {
    let bytes = contents(open(path)?, largest)?;
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "not UTF-8 text"))
}

/// Reads a file written by the monitor, at most `largest` bytes.
///
/// # Errors
/// As [`read`]; also if the path is a symbolic link.
pub fn read_own(path: &Path, largest: u64) -> std::io::Result<Vec<u8>> {
    contents(open_own(OpenOptions::new().read(true), path)?, largest)
}

/// Opens a file owned by the monitor: never through a symbolic link, only regular files. A new file is readable only
/// by its owner.
///
/// # Errors
/// If it cannot be opened, or is not a regular file.
pub fn open_own(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    use rustix::fs::OFlags;

    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    regular(options.mode(0o600).custom_flags(flags).open(path)?)
}

/// Creates a folder and its missing parents, accessible only by the owner.
///
/// # Errors
/// The I/O error.
pub fn make_own_folder(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn regular(file: File) -> std::io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::new(ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn contents(file: File, largest: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    regular(file)?.take(largest.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > largest {
        return Err(Error::new(ErrorKind::InvalidInput, format!("larger than {largest} bytes")));
    }
    Ok(bytes)
}

fn open(path: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};

    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("shepherd-regular-file-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn fifos_folders_devices_and_large_files_are_rejected_without_blocking() {
        let folder = Folder::new("refused");
        let fifo = folder.0.join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let huge = folder.0.join("huge");
        File::create(&huge).unwrap().set_len(RULES + 1).unwrap();
        for (path, why) in
            [(fifo, "regular"), (folder.0.clone(), "regular"), ("/dev/zero".into(), "regular"), (huge, "larger")]
        {
            let error = read(&path, RULES).unwrap_err();
            assert!(error.to_string().contains(why), "{}: {error}", path.display());
        }
        assert_eq!(read(&folder.0.join("missing"), RULES).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn links_to_regular_files_are_followed() {
        let folder = Folder::new("link");
        std::fs::write(folder.0.join("file"), "rules: []").unwrap();
        std::os::unix::fs::symlink("file", folder.0.join("link")).unwrap();
        assert_eq!(read(&folder.0.join("link"), RULES).unwrap(), "rules: []");
    }

    #[test]
    fn own_files_are_private_and_never_links_or_fifos() {
        use std::os::unix::fs::PermissionsExt;

        let folder = Folder::new("own");
        let inner = folder.0.join("a/b");
        make_own_folder(&inner).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = inner.join("file");
        drop(open_own(OpenOptions::new().create(true).append(true), &file).unwrap());
        assert_eq!((mode(&inner), mode(&folder.0.join("a")), mode(&file)), (0o700, 0o700, 0o600));
        std::fs::write(folder.0.join("elsewhere"), "kept").unwrap();
        std::os::unix::fs::symlink("elsewhere", folder.0.join("link")).unwrap();
        let fifo = folder.0.join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for path in [folder.0.join("link"), fifo] {
            assert!(open_own(OpenOptions::new().read(true).append(true), &path).is_err(), "{}", path.display());
            assert!(read_own(&path, 100).is_err(), "{}", path.display());
        }
        assert_eq!(std::fs::read_to_string(folder.0.join("elsewhere")).unwrap(), "kept");
    }
}
