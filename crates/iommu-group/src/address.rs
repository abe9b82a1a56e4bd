//! Address types (host bus, guest-physical, I/O virtual) and half-open address ranges.

use std::fmt;

/// An address space of 64-bit byte addresses.
pub trait Address: Copy + Ord + fmt::Display + fmt::Debug {
    /// Creates the address `value`, in bytes from the start of the space.
    fn new(value: u64) -> Self;
    /// The address in bytes from the start of the space.
    fn value(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl Address for $name {
            fn new(value: u64) -> Self {
                Self(value)
            }

            fn value(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// An address on the host's PCI bus, as in BARs, bridge windows and requests.
    BusAddress
}

address! {
    /// A guest-physical address, as the guest writes it into BARs and page tables.
    Gpa
}

address! {
    /// An I/O virtual address: an assigned device sends it on the bus and the IOMMU translates it.
    Iova
}

impl Gpa {
    /// The guest-physical address equal to a bus address. The guest has a BAR there if peers reach it by bus address.
    #[must_use]
    pub fn at_bus_address(address: BusAddress) -> Self {
        Self(address.0)
    }
}

impl Iova {
    /// The IOVA at which a device accesses the guest-physical address `gpa`.
    ///
    /// Without a virtual IOMMU, guest drivers pass guest-physical addresses to their devices, so the two are
    /// numerically equal. This is the only conversion from one to the other.
    pub fn of_guest(gpa: Gpa) -> Self {
        Self(gpa.0)
    }
}

/// A non-empty half-open range of addresses that does not wrap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AddressRange<A> {
    start: A,
    len_bytes: u64,
}

impl AddressRange<Gpa> {
    /// The guest-physical addresses from `start` up to but not including `end`, for constants.
    ///
    /// # Panics
    /// If the range is empty.
    #[must_use]
    pub const fn of_constants(start: u64, end: u64) -> Self {
        assert!(start < end, "a range is not empty");
        Self {
            start: Gpa(start),
            len_bytes: end - start,
        }
    }
}

impl<A: Address> AddressRange<A> {
    /// The range of `len_bytes` bytes from `start`, or `None` if it is empty or passes the end of the space.
    pub fn new(start: A, len_bytes: u64) -> Option<Self> {
        let last = start.value().checked_add(len_bytes.checked_sub(1)?)?;
        // The end must be representable too, so that half-open arithmetic does not wrap.
        last.checked_add(1)?;
        Some(Self { start, len_bytes })
    }

    /// The addresses from `start` up to but not including `end`, or `None` if the range is empty.
    pub fn between(start: A, end: A) -> Option<Self> {
        Self::new(start, end.value().checked_sub(start.value())?)
    }

    /// First address.
    pub fn start(&self) -> A {
        self.start
    }

    /// First address after the range.
    pub fn end(&self) -> A {
        A::new(self.start.value() + self.len_bytes)
    }

    /// Length in bytes, never 0.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The addresses that are in both ranges, if any.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        Self::new(start, end.value().checked_sub(start.value())?)
    }

    /// Whether every byte of `other` lies in this range.
    pub fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Offset of `address` in the range in bytes, or `None` if the address is outside.
    pub fn offset_of(&self, address: A) -> Option<u64> {
        let offset = address.value().checked_sub(self.start.value())?;
        (offset < self.len_bytes).then_some(offset)
    }
}

impl<A: Address> fmt::Display for AddressRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len_bytes: u64) -> AddressRange<Gpa> {
        AddressRange::new(Gpa::new(start), len_bytes).unwrap()
    }

    #[test]
    fn empty_and_wrapping_ranges_do_not_exist() {
        assert_eq!(AddressRange::new(Gpa::new(4096), 0), None);
        assert_eq!(AddressRange::new(Gpa::new(u64::MAX - 1), 3), None);
        assert_eq!(AddressRange::new(Gpa::new(u64::MAX), 1), None);
    }

    #[test]
    fn ranges_between_addresses_are_half_open() {
        let between = |start, end| AddressRange::between(Gpa::new(start), Gpa::new(end));
        assert_eq!(between(0x1000, 0x3000), Some(range(0x1000, 0x2000)));
        assert_eq!(between(0, u64::MAX), Some(range(0, u64::MAX)));
        assert_eq!(between(0x1000, 0x1000), None);
        assert_eq!(between(0x1000, 0xfff), None);
        assert_eq!(
            AddressRange::of_constants(0x1000, 0x3000),
            range(0x1000, 0x2000)
        );
    }

    #[test]
    fn containment_is_of_every_byte() {
        assert!(range(0x1000, 0x1000).contains(&range(0x1000, 0x1000)));
        assert!(range(0x1000, 0x1000).contains(&range(0x1800, 0x800)));
        assert!(!range(0x1000, 0x1000).contains(&range(0x1800, 0x801)));
        assert!(!range(0x1000, 0x1000).contains(&range(0xfff, 2)));
    }

    #[test]
    fn intersection_is_what_both_have() {
        let both = range(0x1000, 0x2000).intersect(&range(0x2000, 0x2000));
        assert_eq!(both, Some(range(0x2000, 0x1000)));
        assert_eq!(range(0x1000, 0x1000).intersect(&range(0x2000, 1)), None);
    }

    #[test]
    fn offsets_exist_only_inside() {
        assert_eq!(range(0x1000, 0x10).offset_of(Gpa::new(0xfff)), None);
        assert_eq!(range(0x1000, 0x10).offset_of(Gpa::new(0x1000)), Some(0));
        assert_eq!(range(0x1000, 0x10).offset_of(Gpa::new(0x100f)), Some(0xf));
        assert_eq!(range(0x1000, 0x10).offset_of(Gpa::new(0x1010)), None);
    }
}
