//! The filter: which exits a trace shows and counts.

use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::event::{Exit, Kind};
use crate::meaning::Device;

/// A filter, parsed from a list such as `com1,ioapic,vcpu=0`.
///
/// A word is a kind (`out`, `mmio-read`, …), a group of kinds (`io`, `mmio`), a device (`com1`, `ioapic`, …), a place
/// (`port=0x3f8-0x3ff`, `address=0xfec00000`) or a vCPU (`vcpu=0`). An exit passes if it is of one of the kinds, at one of the devices or
/// places, and of one of the vCPUs, where the filter has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    kinds: Vec<Kind>,
    devices: Vec<Device>,
    places: Vec<Place>,
    vcpus: Vec<u8>,
}

/// Ports or addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    ports: bool,
    range: RangeInclusive<u64>,
}

/// A word that a filter can't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown filter {word:?}: expected {}", expected())]
pub struct UnknownFilter {
    /// The word.
    pub word: String,
}

/// Returns the words that there are, for the error.
fn expected() -> String {
    let devices = Device::ALL.map(Device::id).join(", ");
    let kinds = Kind::ALL.map(Kind::name).join(", ");
    format!(
        "a device ({devices}), a kind (io, mmio, {kinds}), port=N or port=N-M, address=N or address=N-M, or vcpu=N"
    )
}

impl Filter {
    /// Returns whether the exit, which is about `device`, passes.
    pub fn passes(&self, exit: &Exit, device: Device) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&exit.kind);
        let vcpu = self.vcpus.is_empty() || self.vcpus.contains(&exit.vcpu);
        let anywhere = self.devices.is_empty() && self.places.is_empty();
        let place = anywhere
            || self.devices.contains(&device)
            || self.places.iter().any(|place| place.has(exit));
        kind && vcpu && place
    }

    fn add(&mut self, word: &str) -> Option<()> {
        match word.split_once('=') {
            Some(("vcpu", number)) => self.vcpus.push(number.parse().ok()?),
            Some(("port", range)) => self.places.push(Place {
                ports: true,
                range: numbers(range)?,
            }),
            Some(("address", range)) => self.places.push(Place {
                ports: false,
                range: numbers(range)?,
            }),
            Some(_) => return None,
            None => self.add_name(word)?,
        }
        Some(())
    }

    fn add_name(&mut self, word: &str) -> Option<()> {
        let named = |kind: &Kind| match word {
            "io" => kind.is_port(),
            "mmio" => matches!(kind, Kind::MmioRead | Kind::MmioWrite),
            _ => kind.name() == word,
        };
        let kinds: Vec<_> = Kind::ALL.into_iter().filter(named).collect();
        let device = Device::ALL.into_iter().find(|device| device.id() == word);
        if kinds.is_empty() && device.is_none() {
            return None;
        }
        self.kinds.extend(kinds);
        self.devices.extend(device);
        Some(())
    }
}

impl Place {
    fn has(&self, exit: &Exit) -> bool {
        exit.kind.is_access()
            && exit.kind.is_port() == self.ports
            && self.range.contains(&exit.address)
    }
}

impl FromStr for Filter {
    type Err = UnknownFilter;

    fn from_str(text: &str) -> Result<Self, UnknownFilter> {
        let mut filter = Filter::default();
        for word in text.split(',').map(str::trim) {
            filter
                .add(word)
                .ok_or_else(|| UnknownFilter { word: word.into() })?;
        }
        Ok(filter)
    }
}

/// Parses `N` or `N-M`, decimal or hexadecimal.
fn numbers(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first)?..=number(last)?;
    (!range.is_empty()).then_some(range)
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meaning::tests::access;

    /// Which of some exits pass the filter.
    fn passing(filter: &str) -> String {
        let filter: Filter = filter.parse().unwrap();
        let mut second = access(Kind::Out, 0x3f8, &[1]);
        second.vcpu = 1;
        let exits = [
            ('a', access(Kind::Out, 0x3f8, &[1]), Device::Com1),
            ('b', access(Kind::In, 0x3fd, &[1]), Device::Com1),
            (
                'c',
                access(Kind::MmioWrite, 0xfec0_0000, &[1]),
                Device::IoApic,
            ),
            ('d', access(Kind::MmioRead, 0x3f8, &[1]), Device::Nothing),
            ('e', access(Kind::Shutdown, 0, &[]), Device::Processor),
            ('f', second, Device::Com1),
        ];
        let passing = exits
            .iter()
            .filter(|(_, exit, device)| filter.passes(exit, *device));
        passing.map(|(name, ..)| name).collect()
    }

    #[test]
    fn kinds_places_and_vcpus_must_all_fit() {
        for (filter, expected) in [
            ("io", "abf"),
            ("mmio", "cd"),
            ("mmio-write", "c"),
            ("com1", "abf"),
            ("com1,out", "af"),
            ("com1,ioapic", "abcf"),
            ("com1,ioapic,mmio", "c"),
            ("port=0x3f8", "af"),
            ("port=0x3f8-0x3ff, vcpu=0", "ab"),
            ("port=1016,address=0x3f8", "adf"),
            ("vcpu=1", "f"),
            ("shutdown", "e"),
            ("processor", "e"),
            ("nothing,address=0xfec00000", "cd"),
        ] {
            assert_eq!(passing(filter), expected, "{filter}");
        }
        let halt = access(Kind::Halt, 0, &[]);
        assert!(Filter::default().passes(&halt, Device::Processor));
    }

    #[test]
    fn an_unknown_word_is_named() {
        for word in [
            "", "uart", "port", "port=", "port=5-4", "port=0xg", "vcpu=-1", "vcpu=256", "COM1",
            "cpu=1",
        ] {
            let error = format!("io,{word}").parse::<Filter>().unwrap_err();
            assert_eq!(error.word, word);
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains("com1"), "{text}");
        }
    }
}
