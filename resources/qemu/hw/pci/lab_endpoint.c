/*
 * A PCIe endpoint for tests of DMA between devices
 *
 * lab-endpoint is a PCI Express device, lab-conventional-endpoint the same as
 * a conventional one, without FLR, ACS and ATS.
 *
 * It copies from any bus address to any other, with the requester ID and the
 * address type that it is told, and records what arrives at it.
 *
 * BAR 0 (64 KiB, memory): registers, 64 bits, little endian
 *   00 r   identity: "LABE", version 1 in bits 63:32
 *   08 rw  source: bus address, or offset into BAR 2 with LOCAL_SOURCE
 *   10 rw  destination: likewise with LOCAL_DESTINATION
 *   18 rw  length in bytes, 1 to 1 MiB
 *   20 rw  requester ID in bits 15:0, sent if SPOOF is set
 *   28 w   command: starts a copy, which is complete when the write returns
 *   30 r   status of the last copy
 *   38 w   interrupt: fires this MSI-X vector
 *   40 rw  arrivals: how many requests reached the mailbox; a write clears
 *   48 rw  which arrival the next three registers show, 0 the first of 64
 *   50 r   offset into the mailbox
 *   58 r   first eight bytes of data
 *   60 r   requester ID in bits 15:0, length in bits 31:16, bit 32: a write
 * from 8000: mailbox, 32 KiB of memory that records requests
 * BAR 1 (16 bytes, I/O, with io-bar=on): a scratch register
 * BAR 2 (64 bits, prefetchable, bar-size): sparse memory
 * BAR 4: MSI-X table and PBA
 * ROM (rom-pages > 0): a header without code, then zeros
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_bus.h"
#include "hw/pci/pcie.h"
#include "hw/qdev-properties.h"
#include "qemu/module.h"
#include "lab_fabric.h"

#define TYPE_LAB_ENDPOINT_BASE "lab-endpoint-base"
OBJECT_DECLARE_SIMPLE_TYPE(LabEndpoint, LAB_ENDPOINT_BASE)

/* An identity of QEMU's range for experiments (docs/specs/pci-ids.rst). */
#define LAB_ENDPOINT_DEVICE_ID 0x10f0

#define REGISTERS_SIZE (64 * KiB)
#define MAILBOX 0x8000
#define MAILBOX_SIZE (REGISTERS_SIZE - MAILBOX)
#define IO_BAR_SIZE 16
#define LONGEST (1 * MiB)
#define ARRIVALS 64
#define PAGE 4096ULL

/* Extended capabilities begin with one that each of them has. */
#define SERIAL_NUMBER_OFFSET 0x100
#define ACS_OFFSET 0x110
#define ATS_OFFSET 0x120

enum {
    REG_IDENTITY = 0x00,
    REG_SOURCE = 0x08,
    REG_DESTINATION = 0x10,
    REG_LENGTH = 0x18,
    REG_REQUESTER = 0x20,
    REG_COMMAND = 0x28,
    REG_STATUS = 0x30,
    REG_INTERRUPT = 0x38,
    REG_ARRIVALS = 0x40,
    REG_SELECT = 0x48,
    REG_OFFSET = 0x50,
    REG_DATA = 0x58,
    REG_ORIGIN = 0x60,
};

enum {
    LOCAL_SOURCE = 1 << 0,
    LOCAL_DESTINATION = 1 << 1,
    /* Translate by ATS first, then send translated requests. */
    TRANSLATE = 1 << 2,
    /* Send the addresses as they are as translated: a hostile function. */
    FORGE = 1 << 3,
    /* Send REG_REQUESTER as the requester ID. */
    SPOOF = 1 << 4,
};

enum {
    STATUS_DONE = 0,
    STATUS_BAD_COMMAND = 1,
    STATUS_READ_FAILED = 2,
    STATUS_WRITE_FAILED = 3,
    STATUS_NOT_TRANSLATED = 4,
};

typedef struct Arrival {
    uint64_t offset;
    uint64_t data;
    uint64_t origin;
} Arrival;

struct LabEndpoint {
    PCIDevice parent_obj;

    MemoryRegion registers;
    MemoryRegion io;
    MemoryRegion memory;
    MemoryRegion rom;

    uint64_t bar_size;
    uint32_t vectors;
    uint32_t rom_pages;
    uint16_t acs_caps;
    bool io_bar;
    bool ats;
    bool internal_p2p;

    uint64_t source;
    uint64_t destination;
    uint64_t length;
    uint64_t requester;
    uint64_t status;
    uint64_t select;
    uint64_t arrivals;
    uint64_t scratch;
    Arrival arrival[ARRIVALS];
    uint8_t mailbox[MAILBOX_SIZE];
    uint8_t staging[LONGEST];
};

static bool ats_is_on(PCIDevice *dev)
{
    return dev->exp.ats_cap &&
           pci_get_word(dev->config + dev->exp.ats_cap + PCI_ATS_CTRL) &
           PCI_ATS_CTRL_ENABLE;
}

/* Asks the IOMMU for the address of the page with @addr. */
static bool translate(PCIDevice *dev, hwaddr addr, bool is_write, hwaddr *to)
{
    AddressSpace *as = pci_device_iommu_address_space(dev);
    IOMMUTLBEntry entry;

    if (!ats_is_on(dev)) {
        return false;
    }
    RCU_READ_LOCK_GUARD();
    entry = address_space_get_iotlb_entry(as, addr, is_write,
                                          MEMTXATTRS_UNSPECIFIED);
    *to = entry.translated_addr | (addr & entry.addr_mask);
    return entry.perm & (is_write ? IOMMU_WO : IOMMU_RO);
}

/* One side of a copy, between the staging buffer and a bus address. */
static uint64_t transfer(LabEndpoint *s, hwaddr addr, uint64_t command,
                         bool is_write)
{
    PCIDevice *dev = PCI_DEVICE(s);
    hwaddr done = 0;

    while (done < s->length) {
        hwaddr at = addr + done;
        hwaddr len = MIN(PAGE - (at & (PAGE - 1)), s->length - done);
        LabRequest request = {
            .addr = at,
            .requester = command & SPOOF ? s->requester : pci_get_bdf(dev),
            .translated = command & (TRANSLATE | FORGE),
        };

        if (command & FORGE && !ats_is_on(dev)) {
            return STATUS_NOT_TRANSLATED;
        }
        if (command & TRANSLATE &&
            !translate(dev, at, is_write, &request.addr)) {
            return STATUS_NOT_TRANSLATED;
        }
        if (lab_fabric_rw(dev, &request, s->staging + done, len, is_write)) {
            return is_write ? STATUS_WRITE_FAILED : STATUS_READ_FAILED;
        }
        done += len;
    }
    return STATUS_DONE;
}

static bool local(LabEndpoint *s, uint64_t offset)
{
    return s->bar_size >= s->length && offset <= s->bar_size - s->length;
}

static uint64_t copy(LabEndpoint *s, uint64_t command)
{
    uint8_t *memory = memory_region_get_ram_ptr(&s->memory);
    uint64_t status = STATUS_DONE;

    if (!s->length || s->length > LONGEST ||
        (command & LOCAL_SOURCE && !local(s, s->source)) ||
        (command & LOCAL_DESTINATION && !local(s, s->destination))) {
        return STATUS_BAD_COMMAND;
    }
    if (command & LOCAL_SOURCE) {
        memcpy(s->staging, memory + s->source, s->length);
    } else {
        status = transfer(s, s->source, command, false);
    }
    if (status != STATUS_DONE) {
        return status;
    }
    if (command & LOCAL_DESTINATION) {
        memcpy(memory + s->destination, s->staging, s->length);
        memory_region_set_dirty(&s->memory, s->destination, s->length);
        return status;
    }
    return transfer(s, s->destination, command, true);
}

static void arrived(LabEndpoint *s, hwaddr offset, uint64_t data, unsigned size,
                    MemTxAttrs attrs, bool is_write)
{
    /* A processor's accesses have no requester ID: they are not recorded. */
    if (attrs.unspecified || !attrs.requester_id) {
        return;
    }
    if (s->arrivals < ARRIVALS) {
        s->arrival[s->arrivals] = (Arrival) {
            .offset = offset,
            .data = data,
            .origin = attrs.requester_id | (uint64_t)size << 16 |
                      (uint64_t)is_write << 32,
        };
    }
    s->arrivals++;
}

static MemTxResult registers_read(void *opaque, hwaddr addr, uint64_t *value,
                                  unsigned size, MemTxAttrs attrs)
{
    LabEndpoint *s = opaque;
    const Arrival *shown = &s->arrival[s->select % ARRIVALS];

    *value = 0;
    if (addr >= MAILBOX) {
        memcpy(value, s->mailbox + (addr - MAILBOX), size);
        arrived(s, addr - MAILBOX, *value, size, attrs, false);
        return MEMTX_OK;
    }
    switch (addr & ~7ULL) {
    case REG_IDENTITY:
        *value = 0x000000014542414cULL;
        break;
    case REG_SOURCE:
        *value = s->source;
        break;
    case REG_DESTINATION:
        *value = s->destination;
        break;
    case REG_LENGTH:
        *value = s->length;
        break;
    case REG_REQUESTER:
        *value = s->requester;
        break;
    case REG_STATUS:
        *value = s->status;
        break;
    case REG_ARRIVALS:
        *value = s->arrivals;
        break;
    case REG_SELECT:
        *value = s->select;
        break;
    case REG_OFFSET:
        *value = shown->offset;
        break;
    case REG_DATA:
        *value = shown->data;
        break;
    case REG_ORIGIN:
        *value = shown->origin;
        break;
    }
    *value >>= (addr & 7) * 8;
    return MEMTX_OK;
}

/* Sets the four or eight bytes of a register that a write covers. */
static void set(uint64_t *field, hwaddr addr, uint64_t value, unsigned size)
{
    *field = deposit64(*field, (addr & 7) * 8, size * 8, value);
}

static MemTxResult registers_write(void *opaque, hwaddr addr, uint64_t value,
                                   unsigned size, MemTxAttrs attrs)
{
    LabEndpoint *s = opaque;

    if (addr >= MAILBOX) {
        memcpy(s->mailbox + (addr - MAILBOX), &value, size);
        arrived(s, addr - MAILBOX, value, size, attrs, true);
        return MEMTX_OK;
    }
    switch (addr & ~7ULL) {
    case REG_SOURCE:
        set(&s->source, addr, value, size);
        break;
    case REG_DESTINATION:
        set(&s->destination, addr, value, size);
        break;
    case REG_LENGTH:
        set(&s->length, addr, value, size);
        break;
    case REG_REQUESTER:
        set(&s->requester, addr, value, size);
        break;
    case REG_COMMAND:
        if (!(addr & 7)) {
            s->status = copy(s, value);
        }
        break;
    case REG_INTERRUPT:
        if (!(addr & 7) && value < s->vectors) {
            msix_notify(PCI_DEVICE(s), value);
        }
        break;
    case REG_ARRIVALS:
        s->arrivals = 0;
        memset(s->arrival, 0, sizeof(s->arrival));
        break;
    case REG_SELECT:
        set(&s->select, addr, value, size);
        break;
    }
    return MEMTX_OK;
}

static const MemoryRegionOps registers_ops = {
    .read_with_attrs = registers_read,
    .write_with_attrs = registers_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 8 },
    .impl = { .min_access_size = 1, .max_access_size = 8 },
};

static uint64_t io_read(void *opaque, hwaddr addr, unsigned size)
{
    return LAB_ENDPOINT_BASE(opaque)->scratch >> (addr & 7) * 8;
}

static void io_write(void *opaque, hwaddr addr, uint64_t value, unsigned size)
{
    set(&LAB_ENDPOINT_BASE(opaque)->scratch, addr, value, size);
}

static const MemoryRegionOps io_ops = {
    .read = io_read,
    .write = io_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 1, .max_access_size = 4 },
};

/* An expansion ROM that holds a header and no code (PCI firmware spec 5.1). */
static bool rom_init(LabEndpoint *s, Error **errp)
{
    PCIDevice *dev = PCI_DEVICE(s);
    uint64_t size = pow2ceil(s->rom_pages * PAGE);
    uint8_t *rom;

    if (!s->rom_pages) {
        return true;
    }
    if (!memory_region_init_rom(&s->rom, OBJECT(s), "lab-endpoint-rom", size,
                                errp)) {
        return false;
    }
    rom = memory_region_get_ram_ptr(&s->rom);
    pci_set_word(rom, 0xaa55);
    pci_set_word(rom + 0x18, 0x1c);
    memcpy(rom + 0x1c, "PCIR", 4);
    pci_set_word(rom + 0x20, pci_get_word(dev->config + PCI_VENDOR_ID));
    pci_set_word(rom + 0x22, LAB_ENDPOINT_DEVICE_ID);
    pci_set_word(rom + 0x26, 0x18);
    pci_set_word(rom + 0x2c, 1);
    /* Code type 0xff: nothing that firmware runs; bit 7: the last image. */
    rom[0x30] = 0xff;
    rom[0x31] = 0x80;
    pci_register_bar(dev, PCI_ROM_SLOT, 0, &s->rom);
    return true;
}

static void lab_endpoint_realize(PCIDevice *dev, Error **errp)
{
    LabEndpoint *s = LAB_ENDPOINT_BASE(dev);
    const uint8_t memory64 = PCI_BASE_ADDRESS_MEM_TYPE_64 |
                             PCI_BASE_ADDRESS_MEM_PREFETCH;

    if (!is_power_of_2(s->bar_size) || s->bar_size < PAGE ||
        s->bar_size > 64 * GiB) {
        error_setg(errp, "bar-size: a power of two from 4K to 64G");
        return;
    }
    if (s->vectors < 1 || s->vectors > 2048) {
        error_setg(errp, "vectors: from 1 to 2048");
        return;
    }
    pci_config_set_interrupt_pin(dev->config, 1);
    memory_region_init_io(&s->registers, OBJECT(s), &registers_ops, s,
                          "lab-endpoint-registers", REGISTERS_SIZE);
    pci_register_bar(dev, 0, PCI_BASE_ADDRESS_SPACE_MEMORY, &s->registers);
    if (s->io_bar) {
        memory_region_init_io(&s->io, OBJECT(s), &io_ops, s,
                              "lab-endpoint-io", IO_BAR_SIZE);
        pci_register_bar(dev, 1, PCI_BASE_ADDRESS_SPACE_IO, &s->io);
    }
    if (!memory_region_init_ram_flags_nomigrate(&s->memory, OBJECT(s),
                                                "lab-endpoint-memory",
                                                s->bar_size, RAM_NORESERVE,
                                                errp)) {
        return;
    }
    pci_register_bar(dev, 2, memory64, &s->memory);
    if (!rom_init(s, errp)) {
        return;
    }
    if (pci_pm_init(dev, 0xc0, errp) < 0) {
        return;
    }
    pci_set_word(dev->wmask + dev->pm_cap + PCI_PM_CTRL,
                 PCI_PM_CTRL_STATE_MASK);
    if (msix_init_exclusive_bar(dev, s->vectors, 4, errp)) {
        return;
    }
    for (uint32_t i = 0; i < s->vectors; i++) {
        msix_vector_use(dev, i);
    }
    if (!pci_is_express(dev)) {
        return;
    }
    if (pcie_endpoint_cap_init(dev, 0x80) < 0) {
        error_setg(errp, "no room for the PCI Express capability");
        return;
    }
    pcie_cap_flr_init(dev);
    pcie_dev_ser_num_init(dev, SERIAL_NUMBER_OFFSET, pci_get_bdf(dev));
    lab_acs_init(dev, ACS_OFFSET, s->acs_caps);
    if (s->ats) {
        pcie_ats_init(dev, ATS_OFFSET, true);
    }
}

static void lab_endpoint_exit(PCIDevice *dev)
{
    msix_uninit_exclusive_bar(dev);
    if (pci_is_express(dev)) {
        pcie_cap_exit(dev);
    }
}

static void lab_endpoint_reset(DeviceState *qdev)
{
    PCIDevice *dev = PCI_DEVICE(qdev);
    LabEndpoint *s = LAB_ENDPOINT_BASE(qdev);

    s->source = s->destination = s->length = s->requester = 0;
    s->status = s->select = s->arrivals = s->scratch = 0;
    memset(s->arrival, 0, sizeof(s->arrival));
    memset(s->mailbox, 0, sizeof(s->mailbox));
    lab_acs_reset(dev);
    if (dev->exp.ats_cap) {
        pci_set_word(dev->config + dev->exp.ats_cap + PCI_ATS_CTRL, 0);
    }
}

static void lab_endpoint_write_config(PCIDevice *dev, uint32_t addr,
                                      uint32_t value, int len)
{
    pci_default_write_config(dev, addr, value, len);
    if (pci_is_express(dev)) {
        pcie_cap_flr_write_config(dev, addr, value, len);
    }
}

static const Property lab_endpoint_props[] = {
    DEFINE_PROP_SIZE("bar-size", LabEndpoint, bar_size, 1 * MiB),
    DEFINE_PROP_UINT32("vectors", LabEndpoint, vectors, 4),
    DEFINE_PROP_UINT32("rom-pages", LabEndpoint, rom_pages, 0),
    DEFINE_PROP_UINT16("acs-caps", LabEndpoint, acs_caps, 0),
    DEFINE_PROP_BOOL("io-bar", LabEndpoint, io_bar, false),
    DEFINE_PROP_BOOL("ats", LabEndpoint, ats, false),
    /* Whether it routes requests between its functions. */
    DEFINE_PROP_BOOL("internal-p2p", LabEndpoint, internal_p2p, false),
};

static void lab_endpoint_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *k = PCI_DEVICE_CLASS(klass);

    k->realize = lab_endpoint_realize;
    k->exit = lab_endpoint_exit;
    k->config_write = lab_endpoint_write_config;
    k->vendor_id = PCI_VENDOR_ID_REDHAT_QUMRANET;
    k->device_id = LAB_ENDPOINT_DEVICE_ID;
    k->class_id = PCI_CLASS_OTHERS;
    device_class_set_legacy_reset(dc, lab_endpoint_reset);
    device_class_set_props(dc, lab_endpoint_props);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    dc->desc = "Endpoint for tests of DMA between devices";
}

static const TypeInfo lab_endpoint_infos[] = {
    {
        .name = TYPE_LAB_ENDPOINT_BASE,
        .parent = TYPE_PCI_DEVICE,
        .instance_size = sizeof(LabEndpoint),
        .class_init = lab_endpoint_class_init,
        .abstract = true,
    },
    {
        .name = "lab-endpoint",
        .parent = TYPE_LAB_ENDPOINT_BASE,
        .interfaces = (InterfaceInfo[]) {
            { INTERFACE_PCIE_DEVICE },
            { }
        },
    },
    {
        .name = "lab-conventional-endpoint",
        .parent = TYPE_LAB_ENDPOINT_BASE,
        .interfaces = (InterfaceInfo[]) {
            { INTERFACE_CONVENTIONAL_PCI_DEVICE },
            { }
        },
    },
};

DEFINE_TYPES(lab_endpoint_infos)
