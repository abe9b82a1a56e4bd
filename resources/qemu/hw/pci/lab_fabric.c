/*
 * Routing of DMA requests below PCIe ports
 *
 * Stock QEMU sends each DMA request straight to the IOMMU.  Here a request of
 * a function goes up port by port.  Each port routes it by its address and by
 * ACS (PCIe r6.0 section 6.12): to a peer below the same switch, further up, or
 * nowhere.  The decision is made at each access, so that it follows the
 * registers as they are.
 *
 * Not modelled: completion redirect, ACS enhanced capability, peer-to-peer
 * inside the root complex.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci.h"
#include "hw/pci/pci_bus.h"
#include "hw/pci/pci_bridge.h"
#include "hw/pci/pcie.h"
#include "hw/pci/pcie_port.h"
#include "exec/memory.h"
#include "lab_fabric.h"
#include "trace.h"

#define TYPE_LAB_FABRIC_REGION "lab-fabric-iommu-memory-region"

/* Bridge windows begin and end at multiples of 1 MiB, BARs of pages. */
#define WINDOW_MASK 0xfffffULL
#define PAGE_MASK_4K 0xfffULL

/* In front of the address space of each function. */
typedef struct LabFabric {
    IOMMUMemoryRegion region;
    PCIDevice *dev;
    AddressSpace *up;
    /* Whether the device routes requests between its functions. */
    bool internal_p2p;
} LabFabric;

typedef enum Way { STRAIGHT, UP, BLOCKED } Way;

typedef struct Route {
    Way way;
    /* Where the request is delivered; the IOMMU's address space for UP. */
    AddressSpace *to;
    /* The port, or the function of a device, that decided. */
    PCIDevice *at;
} Route;

static uint16_t acs_control(PCIDevice *dev)
{
    uint16_t cap = dev->exp.acs_cap;

    return cap ? pci_get_word(dev->config + cap + PCI_ACS_CTRL) : 0;
}

static bool between(PCIDevice *bridge, uint8_t type, hwaddr addr)
{
    return addr >= pci_bridge_get_base(bridge, type) &&
           addr <= pci_bridge_get_limit(bridge, type);
}

static bool decodes_memory(PCIDevice *dev)
{
    return pci_get_word(dev->config + PCI_COMMAND) & PCI_COMMAND_MEMORY;
}

static bool in_window(PCIDevice *bridge, hwaddr addr)
{
    return decodes_memory(bridge) &&
           (between(bridge, PCI_BASE_ADDRESS_SPACE_MEMORY, addr) ||
            between(bridge, PCI_BASE_ADDRESS_MEM_PREFETCH, addr));
}

static bool in_bar(PCIDevice *dev, hwaddr addr)
{
    int i;

    for (i = 0; i < PCI_ROM_SLOT; i++) {
        PCIIORegion *r = &dev->io_regions[i];

        if (r->size && r->addr != PCI_BAR_UNMAPPED &&
            !(r->type & PCI_BASE_ADDRESS_SPACE_IO) &&
            addr >= r->addr && addr - r->addr < r->size) {
            return decodes_memory(dev);
        }
    }
    return false;
}

/*
 * ACS at the ingress, for a request to the peer with this number: redirect,
 * egress control and Direct Translated (PCIe r6.0 sections 6.12.1, 6.12.3).
 */
static Way peer_way(PCIDevice *ingress, uint8_t number, bool translated)
{
    uint16_t control = acs_control(ingress);
    Way stopped = control & PCI_ACS_RR ? UP : BLOCKED;

    if (translated && control & PCI_ACS_DT) {
        return STRAIGHT;
    }
    if (control & PCI_ACS_EC) {
        uint8_t *vector = ingress->config + ingress->exp.acs_cap +
                          PCI_ACS_EGRESS_CTL_V;

        if (number < 32 && !(pci_get_long(vector) >> number & 1)) {
            return STRAIGHT;
        }
        return stopped;
    }
    return control & PCI_ACS_RR ? UP : STRAIGHT;
}

/* What a downstream port checks before it routes a request from below. */
static bool passes_checks(PCIDevice *port, const LabRequest *request)
{
    uint16_t control = acs_control(port);
    uint8_t bus = request->requester >> 8;

    if (control & PCI_ACS_SV &&
        (bus < port->config[PCI_SECONDARY_BUS] ||
         bus > port->config[PCI_SUBORDINATE_BUS])) {
        return false;
    }
    return !(control & PCI_ACS_TB && request->translated);
}

static bool has_internal_p2p(PCIDevice *dev)
{
    return object_property_get_bool(OBJECT(dev), "internal-p2p", NULL);
}

/* The other function of the same device that an address belongs to. */
static PCIDevice *sibling_at(PCIDevice *dev, hwaddr addr)
{
    PCIBus *bus = pci_get_bus(dev);
    int fn;

    for (fn = 0; fn < PCI_FUNC_MAX; fn++) {
        PCIDevice *other = bus->devices[PCI_DEVFN(PCI_SLOT(dev->devfn), fn)];

        if (other && other != dev && in_bar(other, addr)) {
            return other;
        }
    }
    return NULL;
}

static bool is_port(PCIDevice *dev, uint8_t type)
{
    return pci_is_express(dev) && IS_PCI_BRIDGE(dev) &&
           pcie_cap_get_type(dev) == type;
}

/* Between the ports of the switch of which @port is the ingress port. */
static Way switch_way(PCIDevice *port, const LabRequest *request, Route *route)
{
    PCIBus *inner = pci_get_bus(port);
    int i;

    for (i = 0; i < PCI_DEVFN_MAX; i++) {
        PCIDevice *other = inner->devices[i];
        uint8_t number;
        Way way;

        if (!other || other == port || !IS_PCI_BRIDGE(other) ||
            !in_window(other, request->addr)) {
            continue;
        }
        number = pci_get_long(other->config + other->exp.exp_cap +
                              PCI_EXP_LNKCAP) >> 24;
        way = peer_way(port, number, request->translated);
        if (way == STRAIGHT) {
            route->at = other;
            route->to = &PCI_BRIDGE(inner->parent_dev)->as_mem;
        }
        return way;
    }
    /* Nobody claims it: an Unsupported Request inside the upstream window. */
    return in_window(inner->parent_dev, request->addr) ? BLOCKED : UP;
}

static Route route_request(PCIDevice *dev, AddressSpace *up, bool internal_p2p,
                           const LabRequest *request)
{
    PCIBus *bus = pci_get_bus(dev);
    Route route = { .way = UP, .to = up, .at = dev };
    PCIDevice *sibling = internal_p2p && !pci_bus_is_root(bus) ?
                         sibling_at(dev, request->addr) : NULL;

    if (sibling) {
        route.way = peer_way(dev, PCI_FUNC(sibling->devfn),
                             request->translated);
        if (route.way == STRAIGHT) {
            route.to = &PCI_BRIDGE(bus->parent_dev)->as_mem;
        }
        if (route.way != UP) {
            return route;
        }
    }
    while (!pci_bus_is_root(bus)) {
        PCIDevice *port = bus->parent_dev;
        bool downstream = is_port(port, PCI_EXP_TYPE_DOWNSTREAM);
        bool root = is_port(port, PCI_EXP_TYPE_ROOT_PORT);

        route.at = port;
        if (!pci_bus_is_express(bus)) {
            /* On a conventional bus each device sees the request. */
            if (in_window(port, request->addr)) {
                route.way = STRAIGHT;
                route.to = &PCI_BRIDGE(port)->as_mem;
                return route;
            }
        } else if (downstream || root) {
            bool own = in_window(port, request->addr);

            if (!passes_checks(port, request)) {
                route.way = BLOCKED;
                return route;
            }
            /* Whether a root port without ACS returns it is up to its maker. */
            if (own && !(acs_control(port) & PCI_ACS_UF) &&
                (downstream || port->exp.acs_cap)) {
                route.way = BLOCKED;
                return route;
            }
            if (downstream && !own) {
                route.way = switch_way(port, request, &route);
                if (route.way != UP) {
                    return route;
                }
            }
            if (downstream) {
                bus = pci_get_bus(port);
            }
        }
        bus = pci_get_bus(bus->parent_dev);
    }
    return route;
}

static Route trace_route(PCIDevice *dev, const LabRequest *request,
                         IOMMUAccessFlags flag, Route route)
{
    static const char *const names[] = { "straight", "up", "blocked" };

    /* Interrupt messages are no traffic between devices. */
    if ((request->addr & ~WINDOW_MASK) != 0xfee00000) {
        trace_lab_fabric(names[route.way], pci_dev_bus_num(dev),
                         PCI_SLOT(dev->devfn), PCI_FUNC(dev->devfn),
                         pci_dev_bus_num(route.at), PCI_SLOT(route.at->devfn),
                         PCI_FUNC(route.at->devfn), request->addr,
                         flag & IOMMU_WO ? "write" : "read",
                         request->translated ? "translated" : "untranslated");
    }
    return route;
}

static IOMMUTLBEntry lab_fabric_translate(IOMMUMemoryRegion *region,
                                          hwaddr addr, IOMMUAccessFlags flag,
                                          int index)
{
    LabFabric *fabric = container_of(region, LabFabric, region);
    PCIDevice *dev = fabric->dev;
    LabRequest request = { .addr = addr, .requester = pci_get_bdf(dev) };
    Route route = trace_route(dev, &request, flag,
                              route_request(dev, fabric->up,
                                            fabric->internal_p2p, &request));
    hwaddr mask = dev->cap_present & QEMU_PCI_CAP_MULTIFUNCTION ||
                  PCI_FUNC(dev->devfn) ? PAGE_MASK_4K : WINDOW_MASK;

    return (IOMMUTLBEntry) {
        .target_as = route.to,
        .iova = addr & ~mask,
        .translated_addr = addr & ~mask,
        .addr_mask = mask,
        .perm = route.way == BLOCKED ? IOMMU_NONE : IOMMU_RW,
    };
}

/* The address space that the IOMMU has for a requester ID. */
static AddressSpace *space_of(PCIDevice *dev, uint16_t requester)
{
    PCIBus *root = pci_device_root_bus(dev);
    PCIDevice *named = pci_find_device(root, requester >> 8, requester & 0xff);

    return named ? pci_device_iommu_address_space(named) : NULL;
}

MemTxResult lab_fabric_rw(PCIDevice *dev, const LabRequest *request, void *buf,
                          hwaddr len, bool is_write)
{
    MemTxAttrs attrs = { .requester_id = request->requester };
    AddressSpace *up = request->translated ? &address_space_memory :
                       space_of(dev, request->requester);
    Route route;

    if (!(pci_get_word(dev->config + PCI_COMMAND) & PCI_COMMAND_MASTER)) {
        return MEMTX_ACCESS_ERROR;
    }
    route = trace_route(dev, request, is_write ? IOMMU_WO : IOMMU_RO,
                        route_request(dev, up, has_internal_p2p(dev),
                                      request));
    if (route.way == BLOCKED || !route.to) {
        return MEMTX_ACCESS_ERROR;
    }
    return address_space_rw(route.to, request->addr, attrs, buf, len, is_write);
}

MemoryRegion *lab_fabric_root(PCIDevice *dev, AddressSpace *up)
{
    LabFabric *fabric;

    if (pci_bus_is_root(pci_get_bus(dev))) {
        return up->root;
    }
    fabric = g_new0(LabFabric, 1);
    fabric->dev = dev;
    fabric->up = up;
    fabric->internal_p2p = has_internal_p2p(dev);
    memory_region_init_iommu(&fabric->region, sizeof(fabric->region),
                             TYPE_LAB_FABRIC_REGION, OBJECT(dev),
                             "lab-fabric", UINT64_MAX);
    return MEMORY_REGION(&fabric->region);
}

void lab_acs_init(PCIDevice *dev, uint16_t offset, uint16_t bits)
{
    bool egress = bits & PCI_ACS_EC;

    if (!bits) {
        return;
    }
    pcie_add_capability(dev, PCI_EXT_CAP_ID_ACS, PCI_ACS_VER, offset,
                        egress ? 12 : PCI_ACS_SIZEOF);
    dev->exp.acs_cap = offset;
    /* The size of the vector is in bits 15:8. */
    pci_set_word(dev->config + offset + PCI_ACS_CAP,
                 bits | (egress ? 32 << 8 : 0));
    pci_set_word(dev->wmask + offset + PCI_ACS_CTRL, bits);
    if (egress) {
        pci_set_long(dev->wmask + offset + PCI_ACS_EGRESS_CTL_V, UINT32_MAX);
    }
}

void lab_acs_reset(PCIDevice *dev)
{
    uint16_t cap = dev->exp.acs_cap;

    if (!cap) {
        return;
    }
    pci_set_word(dev->config + cap + PCI_ACS_CTRL, 0);
    if (pci_get_word(dev->config + cap + PCI_ACS_CAP) & PCI_ACS_EC) {
        pci_set_long(dev->config + cap + PCI_ACS_EGRESS_CTL_V, 0);
    }
}

static void lab_fabric_region_class_init(ObjectClass *klass, void *data)
{
    IOMMU_MEMORY_REGION_CLASS(klass)->translate = lab_fabric_translate;
}

static const TypeInfo lab_fabric_region_info = {
    .name = TYPE_LAB_FABRIC_REGION,
    .parent = TYPE_IOMMU_MEMORY_REGION,
    .class_init = lab_fabric_region_class_init,
};

static void lab_fabric_register_types(void)
{
    type_register_static(&lab_fabric_region_info);
}

type_init(lab_fabric_register_types)
