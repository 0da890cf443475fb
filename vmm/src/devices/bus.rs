//! A bus: address ranges, each with a device behind it. One for I/O ports, one for memory-mapped registers.
//!
//! Where there is nothing, a read gives all ones and a write is lost, as on a real bus: kernels probe many addresses for
//! devices that may not exist.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;

/// A request that the guest makes to the machine as a whole by writing to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Switch the power off.
    PowerOff,
    /// Reset the processors.
    Reset,
}

/// A device with registers.
pub(crate) trait Device: Send {
    /// The guest reads `data.len()` bytes at `offset` from the device's first address. `data` comes filled with ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` from the device's first address.
    ///
    /// # Errors
    ///
    /// An error that ends the machine, such as `Error::Output` where the console's output can't be written any more.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<Option<Request>>;
}

/// Locks a device. A poisoned one, in which the caller's writer panicked, is as good as any other: the machine ends.
pub(crate) fn lock<D: ?Sized>(device: &Mutex<D>) -> MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Address ranges with devices behind them.
#[derive(Default)]
pub(crate) struct Bus {
    devices: Vec<(Range<u64>, Shared)>,
}

/// A device that several vCPUs and its input reach.
type Shared = Arc<Mutex<dyn Device>>;

impl Bus {
    /// Puts `device` behind `addresses`.
    pub(crate) fn attach(&mut self, addresses: Range<u64>, device: Shared) {
        debug_assert!(
            self.devices
                .iter()
                .all(|(taken, _)| taken.end <= addresses.start || addresses.end <= taken.start)
        );
        self.devices.push((addresses, device));
    }

    /// Answers a read of `data.len()` bytes at `address`.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.find(address) {
            Some((offset, device)) => lock(device).read(offset, data),
            None => log::trace!(
                "read of {} bytes at {address:#x}, where no device is",
                data.len()
            ),
        }
    }

    /// Passes on a write of `data` to `address`.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Result<Option<Request>> {
        match self.find(address) {
            Some((offset, device)) => lock(device).write(offset, data),
            None => {
                log::trace!("write of {data:x?} to {address:#x}, where no device is");
                Ok(None)
            }
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<dyn Device>)> {
        let (range, device) = self
            .devices
            .iter()
            .find(|(range, _)| range.contains(&address))?;
        Some((address - range.start, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what was written, and reads as the offset.
    struct Fake(Vec<(u64, Vec<u8>)>);

    impl Device for Fake {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Result<Option<Request>> {
            self.0.push((offset, data.to_vec()));
            Ok(Some(Request::Reset))
        }
    }

    #[test]
    fn a_device_gets_offsets_and_an_empty_address_reads_as_ones() {
        let fake = Arc::new(Mutex::new(Fake(Vec::new())));
        let mut bus = Bus::default();
        bus.attach(0x3f8..0x400, fake.clone());
        let mut data = [0; 2];
        bus.read(0x3fd, &mut data);
        assert_eq!(data, [5, 0xff]);
        bus.read(0x400, &mut data);
        assert_eq!(data, [0xff, 0xff]);
        assert_eq!(bus.write(0x3f8, &[1, 2]).unwrap(), Some(Request::Reset));
        assert_eq!(bus.write(0x3f7, &[3]).unwrap(), None);
        assert_eq!(fake.lock().unwrap().0, [(0, vec![1, 2])]);
    }
}
