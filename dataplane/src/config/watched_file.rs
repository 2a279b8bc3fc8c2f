//! Whether a file is another one than it was.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// A file that is looked at again and again.
pub struct WatchedFile {
    path: PathBuf,
    /// What was read last.
    read: Option<Identity>,
    /// What was there at the last look.
    seen: Option<Identity>,
}

/// What a rename or a write changes; links are followed, so that a link moved to another file is a change too.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl WatchedFile {
    /// One that was not looked at yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, read: None, seen: None }
    }

    /// Whether there is something new to read: a file that was not read yet and has stood still since the last look. The first look
    /// does not wait. A file that is gone is no change.
    pub fn has_changed(&mut self) -> bool {
        let found = std::fs::metadata(&self.path).ok().map(|metadata| Identity::of(&metadata));
        let stands_still = self.read.is_none() || self.seen == found;
        self.seen = found;
        if found.is_none() || found == self.read || !stands_still {
            return false;
        }
        self.read = found;
        true
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_or_a_finished_write_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eds.yaml");
        let mut file = WatchedFile::new(path.clone());
        let mut looks = |count: usize| (0..count).map(|_| file.has_changed()).collect::<Vec<_>>();
        assert_eq!(looks(2), [false, false], "it is not there");
        std::fs::write(&path, "a").unwrap();
        assert_eq!(looks(2), [true, false], "the first one is read at once");
        std::fs::write(folder.path().join("new"), "b").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(looks(3), [false, true, false], "renamed over");
        std::fs::write(&path, "long").unwrap();
        assert_eq!(looks(1), [false]);
        std::fs::write(&path, "longer").unwrap();
        assert_eq!(looks(3), [false, true, false], "written in place, in two steps");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(looks(2), [false, false], "gone");
        std::fs::write(folder.path().join("other"), "c").unwrap();
        std::os::unix::fs::symlink(folder.path().join("other"), &path).unwrap();
        assert_eq!(looks(3), [false, true, false], "a link to another");
    }
}
