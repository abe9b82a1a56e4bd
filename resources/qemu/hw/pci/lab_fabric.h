/*
 * Routing of DMA requests below PCIe ports
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef HW_PCI_LAB_FABRIC_H
#define HW_PCI_LAB_FABRIC_H

#include "hw/pci/pci_device.h"

/* A memory request as a function sends it. */
typedef struct LabRequest {
    hwaddr addr;
    /* Requester ID in the request; a hostile function sends any. */
    uint16_t requester;
    /* AT field: the address is translated already (ATS). */
    bool translated;
} LabRequest;

/*
 * The memory region that requests of @dev go to, in place of the root of @up,
 * the address space of its IOMMU.
 */
MemoryRegion *lab_fabric_root(PCIDevice *dev, AddressSpace *up);

/* Sends one request that does not cross a page. */
MemTxResult lab_fabric_rw(PCIDevice *dev, const LabRequest *request, void *buf,
                          hwaddr len, bool is_write);

/*
 * Adds an ACS capability with these capability bits and, with egress control,
 * a vector of 32 bits; with @bits 0 it adds none.
 */
void lab_acs_init(PCIDevice *dev, uint16_t offset, uint16_t bits);

/* Clears the control register and the vector, as a reset does. */
void lab_acs_reset(PCIDevice *dev);

#endif
