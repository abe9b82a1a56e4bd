//! Slots in ACPI: their objects, the notifications of plug and unplug, and the eject method.
//!
//! The guest's acpiphp finds a slot by an object with `_ADR` and `_EJ0` below the object of its bridge (linux 7.2
//! drivers/pci/hotplug/acpiphp_glue.c: acpiphp_add_context()). All objects exist from the start. The guest reads
//! configuration space to find out whether a slot is occupied.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, And, Arg, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Interrupt, Local, Method, MethodCall, Mutex, Name, Notify, OpRegion,
    OpRegionSpace, Path, Release, ResourceTemplate, ShiftLeft, Store, ZERO,
};
use guest_topology::SWITCH_SLOTS;
use guest_topology::{Slot, SlotBus};
use hotplug::Register;

use super::raw::RawAml;
use crate::pci::DEVICES;
use crate::slot_control::{SLOT_GSI, SLOT_PORT};

/// Values of Notify for a device (ACPI 6.5 §5.6.6): scan the bus, a device was plugged, eject the device, the button
/// was pressed.
const BUS_CHECK: u8 = 0;
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
const BUTTON_PRESSED: u8 = 0x80;
/// Bits of a register.
const REGISTER_BITS: usize = 32;
/// Timeout for a mutex: none.
const FOREVER: u16 = 0xffff;

/// The registers, with their names in AML.
const REGISTERS: [(&str, Register); 6] = [
    ("SINS", Register::Inserted),
    ("SLVG", Register::Leaving),
    ("SEJT", Register::Eject),
    ("SSEL", Register::Select),
    ("SEVT", Register::Events),
    ("SRSC", Register::Rescan),
];
const LOCK: &str = "SLCK";
const EJECT_METHOD: &str = "SEJC";
const SCAN_METHOD: &str = "\\_SB_.PCI0.SCAN";
const POWER_BUTTON: &str = "\\_SB_.PWRB";

fn notify(object: &str, value: u8) -> RawAml {
    RawAml::concat(&[&Notify::new(&Path::new(object), &value)])
}

/// Objects in the scope of the system bus: the event device (ACPI 6.5 §5.6.9) and the power button.
pub(super) fn devices() -> RawAml {
    let events = Local(0);
    let on = |bit: u32, what: &dyn Aml| {
        RawAml::concat(&[&If::new(&And::new(&ZERO, &events, &bit), vec![what])])
    };
    let button = notify(POWER_BUTTON, BUTTON_PRESSED);
    let scan = MethodCall::new(Path::new(SCAN_METHOD), Vec::new());
    RawAml::concat(&[
        &Device::new(
            "PWRB".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                &Name::new("_UID".into(), &ZERO),
            ],
        ),
        &Device::new(
            "GED0".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    // Consumer, edge triggered, active high, not shared.
                    &ResourceTemplate::new(vec![&Interrupt::new(
                        true,
                        true,
                        false,
                        false,
                        SLOT_GSI.number(),
                    )]),
                ),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![
                        &Store::new(&events, &Path::new("\\_SB_.PCI0.SEVT")),
                        &on(Register::BUTTON, &button),
                        &on(Register::SLOTS, &scan),
                    ],
                ),
            ],
        ),
    ])
}

/// Objects in the scope of the host bridge: registers, methods and slots.
pub(super) fn slots() -> RawAml {
    let region = OpRegion::new(
        "SREG".into(),
        OpRegionSpace::SystemIO,
        &SLOT_PORT,
        &Register::LEN_BYTES,
    );
    let fields = REGISTERS.map(|(name, _)| {
        let mut bytes = [b'_'; 4];
        bytes.copy_from_slice(name.as_bytes());
        FieldEntry::Named(bytes, REGISTER_BITS)
    });
    let field = Field::new(
        "SREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        fields.to_vec(),
    );
    let eject = RawAml::concat(&[&Method::new(
        EJECT_METHOD.into(),
        2,
        true,
        vec![
            &Acquire::new(LOCK.into(), FOREVER),
            &Store::new(&Path::new("SSEL"), &Arg(0)),
            &ShiftLeft::new(&Path::new("SEJT"), &1_u8, &Arg(1)),
            &Release::new(LOCK.into()),
        ],
    )]);
    let roots: Vec<RawAml> = (1..DEVICES).map(root_slot).collect();
    let mut parts: Vec<&dyn Aml> = vec![&region, &field];
    let lock = Mutex::new(LOCK.into(), 0);
    let scan = scan();
    parts.extend([&lock as &dyn Aml, &eject, &scan]);
    parts.extend(roots.iter().map(|slot| slot as &dyn Aml));
    RawAml::concat(&parts)
}

fn buses() -> impl Iterator<Item = SlotBus> {
    std::iter::once(SlotBus::Root).chain(SWITCH_SLOTS.map(SlotBus::Switch))
}

fn slots_of(bus: SlotBus) -> impl Iterator<Item = Slot> {
    // Device 0 of the root bus is the host bridge.
    let first = u8::from(bus == SlotBus::Root);
    (first..DEVICES).filter_map(move |device| Slot::new(bus, device))
}

/// The number of a bus in the registers.
fn number(bus: SlotBus) -> u8 {
    match bus {
        SlotBus::Root => 0,
        SlotBus::Switch(root) => root,
    }
}

/// The absolute path of a bus's object.
fn path_of_bus(bus: SlotBus) -> String {
    match bus {
        SlotBus::Root => "\\_SB_.PCI0".to_owned(),
        SlotBus::Switch(root) => format!("\\_SB_.PCI0.{}.UPST", name(root)),
    }
}

fn name(device: u8) -> String {
    format!("S{device:02X}_")
}

/// The object of a slot. `_SUN` is unique: the guest names slots after it.
fn slot(slot: Slot, below: &RawAml) -> RawAml {
    let bus = number(slot.bus());
    let device = slot.device();
    let sun = u16::from(bus) * u16::from(DEVICES) + u16::from(device);
    RawAml::concat(&[&Device::new(
        name(device).as_str().into(),
        vec![
            &Name::new("_ADR".into(), &(u32::from(device) << 16)),
            &Name::new("_SUN".into(), &sun),
            &Method::new(
                "_EJ0".into(),
                1,
                false,
                vec![&MethodCall::new(EJECT_METHOD.into(), vec![&bus, &device])],
            ),
            below,
        ],
    )])
}

/// A slot of the root bus. If it can hold a switch, it has the upstream port and the slots below it.
fn root_slot(device: u8) -> RawAml {
    let nothing = RawAml::concat(&[]);
    let Some(root) = Slot::new(SlotBus::Root, device) else {
        return nothing;
    };
    if !SWITCH_SLOTS.contains(&device) {
        return slot(root, &nothing);
    }
    let members: Vec<RawAml> = slots_of(SlotBus::Switch(device))
        .map(|member| slot(member, &nothing))
        .collect();
    let address = Name::new("_ADR".into(), &ZERO);
    let mut children: Vec<&dyn Aml> = vec![&address];
    children.extend(members.iter().map(|member| member as &dyn Aml));
    slot(
        root,
        &RawAml::concat(&[&Device::new("UPST".into(), children)]),
    )
}

/// Reads the registers bus by bus and sends the notifications: first for removed devices, then for eject requests,
/// then for plugged devices, which may need the freed resources.
fn scan() -> RawAml {
    let (inserted, leaving, rescan) = (Local(0), Local(1), Local(2));
    let mut body = Vec::new();
    for bus in buses() {
        body.push(RawAml::concat(&[
            &Acquire::new(LOCK.into(), FOREVER),
            &Store::new(&Path::new("SSEL"), &number(bus)),
            &Store::new(&inserted, &Path::new("SINS")),
            &Store::new(&leaving, &Path::new("SLVG")),
            &Store::new(&rescan, &Path::new("SRSC")),
            &Release::new(LOCK.into()),
        ]));
        let path = path_of_bus(bus);
        let check = notify(&path, BUS_CHECK);
        body.push(RawAml::concat(&[&If::new(&rescan, vec![&check])]));
        for (bits, what) in [(&leaving, EJECT_REQUEST), (&inserted, DEVICE_CHECK)] {
            let each = slots_of(bus).map(|slot| {
                let object = format!("{path}.{}", name(slot.device()));
                let bit = 1_u32 << slot.device();
                RawAml::concat(&[&If::new(
                    &And::new(&ZERO, bits, &bit),
                    vec![&notify(&object, what)],
                )])
            });
            let each: Vec<RawAml> = each.collect();
            let each: Vec<&dyn Aml> = each.iter().map(|part| part as &dyn Aml).collect();
            // Usually no bit is set.
            body.push(RawAml::concat(&[&If::new(bits, each)]));
        }
    }
    let body = body.iter().map(|part| part as &dyn Aml).collect();
    RawAml::concat(&[&Method::new("SCAN".into(), 0, true, body)])
}
