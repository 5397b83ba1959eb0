//! Files named in settings or written by the monitor: regular files of bounded size, opened so that no file can block
//! the monitor.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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

/// Opens a file owned by the monitor: never through a symbolic link, only regular files of this user. The file is
/// readable only by its owner, whatever the umask and even if another program or version created it.
///
/// # Errors
/// If it cannot be opened, is not a regular file, or belongs to another user.
pub fn open_own(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    use rustix::fs::OFlags;

    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    let opened = options.mode(0o600).custom_flags(flags).open(path);
    let file = regular(opened.map_err(|error| match error.raw_os_error() {
        Some(number) if number == rustix::io::Errno::LOOP.raw_os_error() => refused("a symbolic link".to_owned()),
        _ => error,
    })?)?;
    let (metadata, user) = (file.metadata()?, current_user());
    if metadata.uid() != user {
        return Err(refused(format!("owned by user {}, not by this user ({user})", metadata.uid())));
    }
    if metadata.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Creates a folder and its missing parents, accessible only by the owner, unless the folder exists; see
/// [`check_own_folder`].
///
/// # Errors
/// The I/O error, or why the existing folder must not be used.
pub fn make_own_folder(folder: &Path) -> std::io::Result<()> {
    if check_own_folder(folder)? {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Another process may have created it.
    check_own_folder(folder).map(drop)
}

/// Returns whether a folder for the monitor's files exists. Another user must not be able to redirect or replace the
/// files: the folder belongs to this user or to root, and is a symbolic link only if root made it for this user, as
/// systemd does with `DynamicUser`.
///
/// # Errors
/// Why the folder must not be used.
pub fn check_own_folder(folder: &Path) -> std::io::Result<bool> {
    // Without a slash at the end, which would follow the link.
    let folder: PathBuf = folder.components().collect();
    let mut found = match folder.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if found.is_symlink() {
        if !may_link(&found, current_user()) {
            return Err(refused("a symbolic link; set the path of the folder itself".to_owned()));
        }
        found = folder.metadata()?;
    }
    if !found.is_dir() {
        return Err(Error::from(ErrorKind::NotADirectory));
    }
    match may_hold(&found, current_user()) {
        true => Ok(true),
        false => {
            let (owner, user) = (found.uid(), current_user());
            Err(refused(format!("owned by user {owner}, not by this user ({user}) or root")))
        }
    }
}

fn may_link(link: &Metadata, user: u32) -> bool {
    link.uid() == 0 && user != 0
}

fn may_hold(folder: &Metadata, user: u32) -> bool {
    [0, user].contains(&folder.uid())
}

fn current_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::PermissionDenied, why)
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

    #[test]
    fn files_that_others_could_read_become_private() {
        let folder = Folder::new("private");
        let file = folder.0.join("spool");
        std::fs::write(&file, "from an earlier version").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
        drop(open_own(OpenOptions::new().read(true), &file).unwrap());
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn linked_folders_and_foreign_ones_are_refused_and_the_reason_is_named() {
        let folder = Folder::new("foreign");
        std::fs::create_dir(folder.0.join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.0.join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.0.join("dangling")).unwrap();
        for link in ["link", "link/", "link/.", "dangling"] {
            let error = make_own_folder(&folder.0.join(link)).unwrap_err();
            assert!(error.to_string().contains("symbolic link"), "{link}: {error}");
        }
        assert!(!folder.0.join("nowhere").exists());
        make_own_folder(&folder.0.join("real")).unwrap();
        make_own_folder(&folder.0.join("link/below")).unwrap();

        let metadata = folder.0.join("link").symlink_metadata().unwrap();
        let owner = metadata.uid();
        assert!(!may_link(&metadata, owner), "a link of this user");
        assert_eq!(may_link(&metadata, owner + 1), owner == 0, "only of root for another user");
        assert!(may_hold(&metadata, owner));
        assert_eq!(may_hold(&metadata, owner + 1), owner == 0);
        // Only root can give a folder away.
        if current_user() == 0 {
            let foreign = folder.0.join("foreign");
            std::fs::create_dir(&foreign).unwrap();
            std::fs::write(foreign.join("file"), "").unwrap();
            for path in [foreign.join("file"), foreign.clone()] {
                std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
            }
            let error = make_own_folder(&foreign).unwrap_err();
            assert!(error.to_string().contains("owned by user 4711"), "{error}");
            let error = open_own(OpenOptions::new().append(true), &foreign.join("file")).unwrap_err();
            assert!(error.to_string().contains("owned by user 4711"), "{error}");
        }
    }
}
