//! When to look at the folder again: at once when the kernel tells of a change, and every few seconds where it cannot.

use std::path::Path;
use std::time::Duration;

use inotify::{EventStream, Inotify, WatchMask, Watches};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::StreamExt;

/// Waits for changes below a set of folders.
pub struct Watch {
    kernel: Option<(EventStream<Vec<u8>>, Watches)>,
}

impl Watch {
    /// A watch over nothing yet. Where the kernel has no watches left, changes are found by looking every [`LOOK_EVERY`].
    pub fn new() -> Self {
        let kernel = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((inotify.into_event_stream(vec![0; EVENT_BYTES])?, watches))
        });
        if let Err(error) = &kernel {
            tracing::warn!("changes of files are found by looking every {LOOK_EVERY:?}: inotify: {error}");
        }
        Self { kernel: kernel.ok() }
    }

    /// Watches `folders`; those that are watched already stay so.
    pub fn set<'a>(&mut self, root: &'a Path, folders: impl Iterator<Item = &'a Path>) {
        let Some((_, watches)) = &mut self.kernel else { return };
        // A root that is one file is watched by its folder, since editors replace files.
        let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        for folder in std::iter::once(parent).chain(folders) {
            if let Err(error) = watches.add(folder, mask) {
                tracing::debug!("{}: not watched: {error}", folder.display());
            }
        }
    }

    /// Returns when something may have changed: after a first event, once nothing came for `quiet`, or after `quiet` ten times.
    pub async fn changed(&mut self, quiet: Duration) {
        let look = Instant::now() + LOOK_EVERY;
        let Some((events, _)) = &mut self.kernel else { return sleep_until(look).await };
        if timeout_at(look, events.next()).await.is_err() {
            return;
        }
        let latest = Instant::now() + quiet * 10;
        loop {
            let deadline = (Instant::now() + quiet).min(latest);
            match timeout_at(deadline, events.next()).await {
                Ok(Some(Ok(_))) if Instant::now() < latest => {}
                _ => return,
            }
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// How often the folder is looked at without being told.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
const EVENT_BYTES: usize = 16 * 1024;
