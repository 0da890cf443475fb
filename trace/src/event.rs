//! Events: what a trace is made of, in plain data.
//!
//! As JSON, an event is an object whose `event` names its kind. Times are nanoseconds since the trace began; addresses are
//! hexadecimal text, for JSON's numbers hold 53 bits in many programs.

use serde::{Deserialize, Serialize};

use minivm_vmm::{ExitKind, Step};

use crate::statistics::Statistic;

/// The most bytes of an access that an event keeps: more come in one exit from a string instruction only.
pub const DATA_MAX: usize = 8;

/// One event of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// An exit.
    Exit(Exit),
    /// A step of the machine's life.
    Step {
        /// The time when the machine came to it.
        at: u64,
        /// The step.
        step: Step,
    },
    /// Events that were lost, because they came faster than they were written.
    Lost {
        /// Their number since the last such event.
        count: u64,
    },
    /// KVM's own counts, at the machine's end.
    Counts {
        /// The counts.
        counts: Vec<Statistic>,
    },
    /// KVM's own counts can't be had.
    NoCounts {
        /// The reason.
        reason: String,
    },
}

/// A return of `KVM_RUN` to this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The time when `KVM_RUN` returned.
    pub at: u64,
    /// The time that this process took to serve it, in nanoseconds.
    pub took: u64,
    /// The vCPU's number, from 0.
    pub vcpu: u8,
    /// Its kind.
    pub kind: Kind,
    /// The port or guest-physical address of an access; else 0.
    #[serde(with = "hex", default, skip_serializing_if = "is_zero")]
    pub address: u64,
    /// The bytes of an access: written by the guest, or read by it.
    #[serde(default, skip_serializing_if = "Data::is_empty")]
    pub data: Data,
    /// The guest's instruction pointer.
    #[serde(with = "hex")]
    pub rip: u64,
    /// The monitor's words for an exit of the kind `Other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
}

/// The kind of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The guest read from a port.
    In,
    /// The guest wrote to a port.
    Out,
    /// The guest read from an address without RAM.
    MmioRead,
    /// The guest wrote to an address without RAM.
    MmioWrite,
    /// The guest tried to write to persistent memory.
    PmemWrite,
    /// A triple fault.
    Shutdown,
    /// A halt that KVM didn't keep to itself.
    Halt,
    /// A call of PSCI that switches the machine off.
    PowerOff,
    /// A call of PSCI that resets the machine.
    Reset,
    /// The guest locked the memory bus.
    BusLock,
    /// Not the guest's doing: a signal ended `KVM_RUN`.
    Interrupted,
    /// Not the guest's doing: the vCPU had nothing to run.
    NotRunnable,
    /// Any other.
    Other,
}

/// The first bytes of an access, and how many there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Data {
    bytes: [u8; DATA_MAX],
    size: u32,
}

impl Kind {
    /// All kinds, in the order of tables.
    pub const ALL: [Kind; 13] = [
        Kind::Out,
        Kind::In,
        Kind::MmioWrite,
        Kind::MmioRead,
        Kind::PmemWrite,
        Kind::Shutdown,
        Kind::Halt,
        Kind::PowerOff,
        Kind::Reset,
        Kind::BusLock,
        Kind::Interrupted,
        Kind::NotRunnable,
        Kind::Other,
    ];

    /// Returns its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::In => "in",
            Kind::Out => "out",
            Kind::MmioRead => "mmio-read",
            Kind::MmioWrite => "mmio-write",
            Kind::PmemWrite => "pmem-write",
            Kind::Shutdown => "shutdown",
            Kind::Halt => "halt",
            Kind::PowerOff => "power-off",
            Kind::Reset => "reset",
            Kind::BusLock => "bus-lock",
            Kind::Interrupted => "interrupted",
            Kind::NotRunnable => "not-runnable",
            Kind::Other => "other",
        }
    }

    /// Returns whether it is an access to a port.
    pub fn is_port(self) -> bool {
        matches!(self, Kind::In | Kind::Out)
    }

    /// Returns whether it is an access to a port or an address.
    pub fn is_access(self) -> bool {
        self.is_port() || matches!(self, Kind::MmioRead | Kind::MmioWrite | Kind::PmemWrite)
    }

    /// Returns whether the guest reads.
    pub fn is_read(self) -> bool {
        matches!(self, Kind::In | Kind::MmioRead)
    }
}

impl Data {
    /// Keeps the first bytes of `data`, and its length.
    pub fn new(data: &[u8]) -> Self {
        let mut bytes = [0; DATA_MAX];
        let kept = data.len().min(DATA_MAX);
        bytes[..kept].copy_from_slice(&data[..kept]);
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        Data { bytes, size }
    }

    /// Returns the bytes that were kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.size.min(8) as usize]
    }

    /// Returns how many bytes the access had.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Returns whether there is no byte, as in an exit that is no access.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Returns the bytes that were kept as a little-endian number.
    pub fn value(&self) -> u64 {
        u64::from_le_bytes(self.bytes)
    }
}

impl Exit {
    /// Makes an event of what the observer saw: `at` and `took` in nanoseconds.
    pub(crate) fn of(exit: &minivm_vmm::Exit<'_>, at: u64, took: u64) -> Self {
        let (kind, address) = match exit.kind {
            ExitKind::IoIn(port) => (Kind::In, port.into()),
            ExitKind::IoOut(port) => (Kind::Out, port.into()),
            ExitKind::MmioRead(address) => (Kind::MmioRead, address),
            ExitKind::MmioWrite(address) => (Kind::MmioWrite, address),
            ExitKind::PmemWrite(address) => (Kind::PmemWrite, address),
            ExitKind::Shutdown => (Kind::Shutdown, 0),
            ExitKind::Halt => (Kind::Halt, 0),
            ExitKind::PowerOff => (Kind::PowerOff, 0),
            ExitKind::Reset => (Kind::Reset, 0),
            ExitKind::BusLock => (Kind::BusLock, 0),
            ExitKind::Interrupted => (Kind::Interrupted, 0),
            ExitKind::NotRunnable => (Kind::NotRunnable, 0),
            _ => (Kind::Other, 0),
        };
        let (data, reason) = match kind {
            Kind::Other => (&[][..], Some(String::from_utf8_lossy(exit.data))),
            _ => (exit.data, None),
        };
        let reason = reason.map(|reason| reason.into_owned().into_boxed_str());
        Exit {
            at,
            took,
            vcpu: exit.vcpu,
            kind,
            address,
            data: Data::new(data),
            rip: exit.rip,
            reason,
        }
    }
}

impl Serialize for Data {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for byte in self.bytes() {
            text += &format!("{byte:02x}");
        }
        if self.size as usize > DATA_MAX {
            text += &format!("+{}", self.size as usize - DATA_MAX);
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Data::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is not the bytes of an access"))
        })
    }
}

impl Data {
    /// Parses what `serialize` writes: two hexadecimal digits a byte, and `+N` where `N` more bytes were not kept.
    fn parse(text: &str) -> Option<Self> {
        let (digits, more) = match text.split_once('+') {
            Some((digits, more)) => (digits, more.parse().ok()?),
            None => (text, 0),
        };
        let pairs = digits.as_bytes().chunks(2);
        let bytes = pairs.map(|pair| match pair {
            [_, _] => u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        });
        let mut data = Data::new(&bytes.collect::<Option<Vec<_>>>()?);
        let whole = digits.len() <= 2 * DATA_MAX && (more == 0 || digits.len() == 2 * DATA_MAX);
        data.size = data.size.checked_add(more)?;
        whole.then_some(data)
    }
}

fn is_zero(address: &u64) -> bool {
    *address == 0
}

/// Addresses as hexadecimal text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:#x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u64::from_str_radix(digits, 16).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(data: &[u8]) -> Event {
        Event::Exit(Exit {
            at: 12,
            took: 3,
            vcpu: 1,
            kind: Kind::MmioWrite,
            address: 0xfec0_0010,
            data: Data::new(data),
            rip: 0xffff_ffff_8100_0001,
            reason: None,
        })
    }

    #[test]
    fn events_are_read_back_as_they_were() {
        let events = [
            exit(&[0, 0xff]),
            exit(&[7; 8]),
            exit(&[7; 40]),
            Event::Step {
                at: 9,
                step: Step::VmCreated,
            },
            Event::Lost { count: 3 },
            Event::NoCounts {
                reason: "none".into(),
            },
        ];
        for event in events {
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(
                serde_json::from_str::<Event>(&text).unwrap(),
                event,
                "{text}"
            );
        }
    }

    #[test]
    fn addresses_are_hexadecimal_text() {
        let text = serde_json::to_string(&exit(&[0x4c, 1])).unwrap();
        assert_eq!(
            text,
            r#"{"event":"exit","at":12,"took":3,"vcpu":1,"kind":"mmio-write","address":"0xfec00010","data":"4c01","rip":"0xffffffff81000001"}"#
        );
    }

    #[test]
    fn bytes_that_are_none_are_refused() {
        for text in ["4", "4g", "-1", "00+", "00+1", "0000000000000000000", "é"] {
            assert_eq!(Data::parse(text), None, "{text}");
        }
    }
}
