//! Opening an io_uring: flags probed from the best set downwards, the provided-buffer ring, and the answer to "which gate
//! is shut" when it fails.

use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, Submitter};

use crate::buffer::Pool;
use crate::config::{Features, Gate};
use crate::sys::{self, Mapping};

/// The provided-buffer ring's group number: one for each ring.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Completion queue entries for each submission queue entry where nothing else is asked: a multishot receive completes many times.
pub(super) const COMPLETIONS_PER_SUBMISSION: u32 = 16;

/// An io_uring and its submitter.
///
/// The crate keeps the index of a registered ring descriptor in the submitter, which borrows the ring; so the ring stands
/// on the heap, and both are dropped together here.
pub(super) struct Handle {
    submitter: Submitter<'static>,
    ring: NonNull<IoUring>,
}

impl Handle {
    fn new(ring: IoUring) -> Handle {
        let ring = NonNull::from(Box::leak(Box::new(ring)));
        // SAFETY: the box was just leaked, and only `Drop` takes it back, when the submitter is not used any more.
        let submitter = unsafe { ring.as_ref() }.submitter();
        Handle { submitter, ring }
    }

    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    fn ring(&self) -> &IoUring {
        // SAFETY: the ring lives until `Drop`; nothing makes a mutable reference to it.
        unsafe { self.ring.as_ref() }
    }

    pub(super) fn submission(&mut self) -> io_uring::SubmissionQueue<'_> {
        // SAFETY: the receiver is borrowed mutably for as long as the queue, so there is no other submission queue.
        unsafe { self.ring().submission_shared() }
    }

    pub(super) fn completion(&mut self) -> io_uring::CompletionQueue<'_> {
        // SAFETY: the receiver is borrowed mutably for as long as the queue, so there is no other completion queue.
        unsafe { self.ring().completion_shared() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` in `new`, and this runs once.
        drop(unsafe { Box::from_raw(self.ring.as_ptr()) });
    }
}

/// One set of setup flags.
#[derive(Clone, Copy)]
struct FlagSet {
    single_issuer: bool,
    defer_taskrun: bool,
    coop_taskrun: bool,
    submit_all: bool,
    no_sqarray: bool,
}

/// Best first; each line drops what an older kernel lacks.
const FLAG_SETS: [FlagSet; 4] = [
    FlagSet { single_issuer: true, defer_taskrun: true, coop_taskrun: false, submit_all: true, no_sqarray: true },
    FlagSet { single_issuer: true, defer_taskrun: true, coop_taskrun: false, submit_all: true, no_sqarray: false },
    FlagSet { single_issuer: true, defer_taskrun: false, coop_taskrun: true, submit_all: true, no_sqarray: false },
    FlagSet { single_issuer: false, defer_taskrun: false, coop_taskrun: true, submit_all: true, no_sqarray: false },
];

/// Opens an io_uring with the best flags that the kernel takes.
pub(super) fn open(submission_entries: u32, completion_entries: u32) -> Result<(Handle, Features), Gate> {
    let mut refused = None;
    for flags in FLAG_SETS {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(completion_entries);
        if flags.single_issuer {
            builder.setup_single_issuer();
        }
        if flags.defer_taskrun {
            builder.setup_defer_taskrun();
        }
        if flags.coop_taskrun {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if flags.submit_all {
            builder.setup_submit_all();
        }
        if flags.no_sqarray {
            builder.setup_no_sqarray();
        }
        match builder.build(submission_entries) {
            Ok(ring) => return finish(ring, flags),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(gate("io_uring_setup", &error)),
        }
    }
    match refused {
        Some(_) => Err(Gate::OldKernel { missing: "io_uring's cooperative task running (Linux 5.19)" }),
        None => Err(Gate::OldKernel { missing: "io_uring" }),
    }
}

fn finish(ring: IoUring, flags: FlagSet) -> Result<(Handle, Features), Gate> {
    // Without it completions are lost when the queue is full, and with them buffers and descriptors.
    if !ring.params().is_feature_nodrop() {
        return Err(Gate::OldKernel { missing: "IORING_FEAT_NODROP" });
    }
    if !ring.params().is_feature_ext_arg() {
        return Err(Gate::OldKernel { missing: "IORING_FEAT_EXT_ARG" });
    }
    let no_iowait = ring.params().is_feature_no_iowait();
    let mut handle = Handle::new(ring);
    let registered_ring = handle.submitter.register_ring_fd().is_ok();
    let features = Features {
        single_issuer: flags.single_issuer,
        defer_taskrun: flags.defer_taskrun,
        coop_taskrun: flags.coop_taskrun,
        submit_all: flags.submit_all,
        no_sqarray: flags.no_sqarray,
        no_iowait,
        registered_ring,
    };
    Ok((handle, features))
}

/// Which gate an error of io_uring_setup or io_uring_register means.
pub(super) fn gate(call: &'static str, error: &io::Error) -> Gate {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    gate_of(call, errno, sys::read_setting("/proc/sys/kernel/io_uring_disabled"))
}

/// As `gate`, given the value of `kernel.io_uring_disabled`, which kernels since 6.6 have.
fn gate_of(call: &'static str, errno: i32, setting: Option<u32>) -> Gate {
    match errno {
        libc::EPERM | libc::EACCES => match setting {
            Some(value) if value != 0 => Gate::Sysctl { value },
            _ => Gate::Seccomp,
        },
        // A kernel with the setting has io_uring; the answer then comes from a filter.
        libc::ENOSYS if setting.is_some() => Gate::Seccomp,
        libc::ENOSYS => Gate::OldKernel { missing: "io_uring" },
        libc::ENOMEM => Gate::Memlock,
        libc::EMFILE | libc::ENFILE => Gate::OpenFiles,
        errno => Gate::Other { call, errno },
    }
}

/// The ring of buffers that the kernel receives into (io_uring_register_buf_ring(3)).
pub(super) struct BufferRing {
    memory: Mapping,
    pool: Rc<Pool>,
    entries: u16,
    tail: u16,
    /// Buffers that the kernel has and has not used.
    provided: u16,
}

impl BufferRing {
    pub(super) fn register(handle: &Handle, pool: &Rc<Pool>, entries: u16) -> Result<BufferRing, Gate> {
        let bytes = usize::from(entries) * size_of::<BufRingEntry>();
        let memory = Mapping::new(bytes).map_err(|error| gate("mmap", &error))?;
        let address = memory.pointer() as u64;
        // SAFETY: the mapping is page-aligned, holds `entries` entries and is unmapped only after the ring is gone: the
        // driver drops its handle first.
        let registered = unsafe { handle.submitter().register_buf_ring_with_flags(address, entries, BUFFER_GROUP, 0) };
        match registered {
            Ok(()) => Ok(BufferRing { memory, pool: Rc::clone(pool), entries, tail: 0, provided: 0 }),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(Gate::OldKernel { missing: "provided-buffer rings (Linux 5.19)" })
            }
            Err(error) => Err(gate("io_uring_register", &error)),
        }
    }

    /// Hands free buffers to the kernel until it has `target` of them.
    pub(super) fn replenish(&mut self, target: u16) {
        let before = self.tail;
        while self.provided < target.min(self.entries) {
            let Some(buffer) = self.pool.take() else { break };
            self.put(buffer);
        }
        if self.tail != before {
            self.publish();
        }
    }

    /// Buffers that the kernel has and has not used.
    pub(super) fn provided(&self) -> usize {
        usize::from(self.provided)
    }

    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Counts a buffer that the kernel has used.
    pub(super) fn on_used(&mut self) {
        self.provided -= 1;
    }

    fn put(&mut self, buffer: u16) {
        let at = usize::from(self.tail & (self.entries - 1));
        let base = self.memory.pointer().cast::<BufRingEntry>();
        // SAFETY: `at` is below `entries`, and the mapping holds that many.
        let entry = unsafe { base.add(at) };
        // SAFETY: the entry lies in the mapping, which is zeroed at first; the kernel reads it only below the published
        // tail, and this place is above it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.pool.pointer(buffer) as u64);
        entry.set_len(self.pool.buffer_bytes());
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.provided += 1;
    }

    fn publish(&mut self) {
        let base = self.memory.pointer().cast::<BufRingEntry>();
        // SAFETY: `base` is the first entry of the ring, as the function demands.
        let tail = unsafe { BufRingEntry::tail(base) }.cast_mut();
        // SAFETY: the tail is two aligned bytes of the mapping, shared with the kernel and accessed atomically by both.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        // Release: the kernel must see the entries before it sees that they are there.
        tail.store(self.tail, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_names_its_gate_and_the_cure() {
        let check = |errno, setting, expected: Gate, cure: &str| {
            let gate = gate_of("io_uring_setup", errno, setting);
            assert!(gate.to_string().contains(cure), "{gate}");
            assert_eq!(gate, expected);
        };
        check(libc::EPERM, Some(2), Gate::Sysctl { value: 2 }, "sysctl -w kernel.io_uring_disabled=0");
        check(libc::EPERM, Some(0), Gate::Seccomp, "seccomp profile");
        check(libc::EACCES, None, Gate::Seccomp, "io_uring_register");
        check(libc::ENOSYS, Some(0), Gate::Seccomp, "seccomp profile");
        check(libc::ENOSYS, None, Gate::OldKernel { missing: "io_uring" }, "run Linux 6.1");
        check(libc::ENOMEM, Some(0), Gate::Memlock, "ulimit -l");
        check(libc::EMFILE, Some(0), Gate::OpenFiles, "ulimit -n");
        let other = Gate::Other { call: "io_uring_setup", errno: libc::EIO };
        check(libc::EIO, Some(0), other, "io_uring_setup failed");
    }
}
