//! The duties of the first process of any machine, guest or lab.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Sets `lo` up, as `ip link set lo up` does; the kernel gives it 127.0.0.1 by itself.
///
/// `netdevice(7)`, `SIOCSIFFLAGS`: an interface is named in a request that goes through any socket.
///
/// # Errors
///
/// The operating system's, where the kernel has no network, or this process may not change it.
#[allow(unsafe_code, reason = "neither std nor rustix has this ioctl")]
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; _];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let flags = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    // The type of an ioctl's number differs between C libraries.
    #[allow(clippy::useless_conversion, reason = "it is of use with musl")]
    let number = libc::SIOCSIFFLAGS.try_into().map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq` that has a name and flags; `request` is one and lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
