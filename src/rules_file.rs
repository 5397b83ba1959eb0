//! Reading the file of alert rules: a regular file of bounded size, opened so that nothing can block on it.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::Path;

/// The largest file, bytes.
pub const LARGEST: u64 = 1024 * 1024;

/// The text of the file.
///
/// # Errors
/// When it is missing, no regular file (opening a FIFO would wait for its writer), too large, not UTF-8, or cannot be
/// read.
pub fn read(path: &Path) -> std::io::Result<String> {
    let file = open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LARGEST {
        return Err(Error::new(ErrorKind::InvalidInput, format!("larger than {LARGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "not UTF-8 text"))
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
            let folder = std::env::temp_dir().join(format!("shepherd-rules-file-{}-{name}", std::process::id()));
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
    fn a_fifo_a_folder_a_device_and_a_huge_file_are_refused_at_once() {
        let folder = Folder::new("refused");
        let fifo = folder.0.join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let huge = folder.0.join("huge");
        File::create(&huge).unwrap().set_len(LARGEST + 1).unwrap();
        for (path, why) in
            [(fifo, "regular"), (folder.0.clone(), "regular"), ("/dev/zero".into(), "regular"), (huge, "larger")]
        {
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains(why), "{}: {error}", path.display());
        }
        assert_eq!(read(&folder.0.join("missing")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_link_to_a_regular_file_is_followed() {
        let folder = Folder::new("link");
        std::fs::write(folder.0.join("file"), "rules: []").unwrap();
        std::os::unix::fs::symlink("file", folder.0.join("link")).unwrap();
        assert_eq!(read(&folder.0.join("link")).unwrap(), "rules: []");
    }
}
