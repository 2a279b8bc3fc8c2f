//! System calls, each as a safe function: the arguments' types carry what the kernel demands.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::address::RawAddr;
use crate::lanes::Lanes;

/// An anonymous, private, zeroed mapping.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    pub(crate) fn new(bytes: usize) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Mapping { start, bytes })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever refers to it holds a reference to its owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The answer of a call that returns -1 and sets errno.
pub(crate) fn answer(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn clock(which: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the write; the two clocks that we ask for always exist.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_nanos() -> u64 {
    let time = clock(libc::CLOCK_MONOTONIC);
    time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())
}

/// The wall clock.
pub(crate) fn wall() -> SystemTime {
    UNIX_EPOCH + clock(libc::CLOCK_REALTIME)
}

/// Takes a descriptor that the kernel has just handed out.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    debug_assert!(fd >= 0);
    // SAFETY: the callers pass a descriptor that a system call or completion has just created for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn close(fd: RawFd) {
    drop(own(fd));
}

pub(crate) fn socket(family: libc::c_int, nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: no memory is passed.
    answer(unsafe { libc::socket(family, libc::SOCK_STREAM | flags, 0) }).map(own)
}

pub(crate) fn bind(fd: RawFd, address: &RawAddr) -> io::Result<()> {
    // SAFETY: pointer and length describe the address, which outlives the call.
    answer(unsafe { libc::bind(fd, address.pointer(), address.length()) }).map(drop)
}

pub(crate) fn connect(fd: RawFd, address: &RawAddr) -> io::Result<()> {
    // SAFETY: pointer and length describe the address, which outlives the call.
    answer(unsafe { libc::connect(fd, address.pointer(), address.length()) }).map(drop)
}

pub(crate) fn accept(fd: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null pointers ask for no address.
    answer(unsafe { libc::accept4(fd, ptr::null_mut(), ptr::null_mut(), flags) }).map(own)
}

/// Receives into a buffer that the caller alone may write to.
pub(crate) fn receive(fd: RawFd, buffer: NonNull<u8>, bytes: usize) -> io::Result<usize> {
    // SAFETY: the driver passes a buffer that it has taken from the pool, whole, and no chunk refers to.
    let received = unsafe { libc::recv(fd, buffer.as_ptr().cast(), bytes, libc::MSG_DONTWAIT) };
    if received < 0 { Err(io::Error::last_os_error()) } else { Ok(received as usize) }
}

pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the slice is valid for reads.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Sends what the lanes have gathered.
pub(crate) fn send_gathered(fd: RawFd, lanes: &Lanes) -> io::Result<usize> {
    // SAFETY: the lanes' message header points to vectors of the parts that they hold (see `Lanes::gather`).
    let sent = unsafe { libc::sendmsg(fd, lanes.message(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

pub(crate) fn shutdown_write(fd: RawFd) {
    // SAFETY: no memory is passed. An error means that the peer is gone, which the next receive reports.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Sets a socket option to the bytes of a value.
pub(crate) fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe the slice.
    answer(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) })
        .map(drop)
}

pub(crate) fn set_integer_option(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// Makes close send a reset instead of what is queued (socket(7), SO_LINGER with a time of zero).
pub(crate) fn reset_on_close(fd: RawFd) {
    let mut linger = [0u8; mem::size_of::<libc::linger>()];
    linger[..4].copy_from_slice(&1i32.to_ne_bytes());
    // A unix socket has no reset; there the close alone says it.
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// Takes the error that a connect or an asynchronous failure left on a socket.
pub(crate) fn take_error(fd: RawFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut length = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: value and length are valid for the write.
    answer(unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut length)
    })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

pub(crate) fn local_address(fd: RawFd) -> io::Result<RawAddr> {
    let mut address = RawAddr::empty();
    let pointer = address.pointer_mut();
    // SAFETY: the address and its length are valid for writes.
    answer(unsafe { libc::getsockname(fd, pointer, address.length_mut()) })?;
    Ok(address)
}

/// Where a connection was going before the kernel's NAT sent it here; an error where it was not sent.
pub(crate) fn original_destination(fd: RawFd, is_ipv6: bool) -> io::Result<RawAddr> {
    let mut address = RawAddr::empty();
    let pointer = address.pointer_mut();
    let (level, name) = match is_ipv6 {
        true => (libc::SOL_IPV6, libc::IP6T_SO_ORIGINAL_DST),
        false => (libc::SOL_IP, libc::SO_ORIGINAL_DST),
    };
    // SAFETY: the address and its length are valid for writes, and the kernel writes no more than the length.
    answer(unsafe { libc::getsockopt(fd, level, name, pointer.cast(), address.length_mut()) })?;
    Ok(address)
}

pub(crate) fn peer_address(fd: RawFd) -> io::Result<RawAddr> {
    let mut address = RawAddr::empty();
    let pointer = address.pointer_mut();
    // SAFETY: the address and its length are valid for writes.
    answer(unsafe { libc::getpeername(fd, pointer, address.length_mut()) })?;
    Ok(address)
}

pub(crate) fn set_nonblocking(fd: RawFd, nonblocking: bool) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let flags = answer(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    if wanted != flags {
        // SAFETY: no memory is passed.
        answer(unsafe { libc::fcntl(fd, libc::F_SETFL, wanted) })?;
    }
    Ok(())
}

pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    answer(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(own)
}

/// Adds one to an eventfd, which makes it readable.
pub(crate) fn raise(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes are valid for reads. A full counter is readable already, so an error changes nothing.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Sets an eventfd back to zero.
pub(crate) fn lower(fd: &OwnedFd) {
    let mut count = [0u8; 8];
    // SAFETY: eight bytes are valid for writes. An error means that the counter is zero already.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// A connected pair of unix stream sockets.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [-1; 2];
    // SAFETY: two integers are valid for the write.
    answer(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) })?;
    Ok((own(pair[0]), own(pair[1])))
}

pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    answer(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(own)
}

pub(crate) fn epoll_control(
    epoll: &OwnedFd,
    operation: libc::c_int,
    fd: RawFd,
    events: u32,
    data: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the event is valid for reads.
    answer(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
}

/// Waits for events; `None` waits without end. Falls back to milliseconds, rounded up, where the kernel has no
/// epoll_pwait2 (before Linux 5.11) or a filter refuses it.
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    precise: &mut bool,
) -> io::Result<usize> {
    let room = events.len() as libc::c_int;
    if let (true, Some(wait)) = (*precise, timeout)
        && !wait.is_zero()
    {
        let time = libc::timespec {
            tv_sec: wait.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: libc::c_long::from(wait.subsec_nanos() as i32),
        };
        // SAFETY: events and time are valid for the call; a null mask changes no signal.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll.as_raw_fd(),
                events.as_mut_ptr(),
                room,
                &raw const time,
                ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
            return Err(error);
        }
        *precise = false;
    }
    let millis = match timeout {
        None => -1,
        Some(wait) => wait.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as libc::c_int,
    };
    // SAFETY: events are valid for writes.
    answer(unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), room, millis) })
        .map(|count| count as usize)
}

/// Reads a small file of /proc, such as a setting.
pub(crate) fn read_setting(path: &str) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
