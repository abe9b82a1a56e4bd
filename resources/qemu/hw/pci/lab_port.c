/*
 * PCIe ports whose ACS capability is chosen on the command line
 *
 * lab-downstream-port is xio3130-downstream, lab-root-port is like ioh3420;
 * their property acs-caps has the capability bits, 0 for no ACS capability.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/pci/msi.h"
#include "hw/pci/pci_ids.h"
#include "hw/pci/pcie.h"
#include "hw/pci/pcie_port.h"
#include "hw/pci-bridge/xio3130_downstream.h"
#include "hw/qdev-properties.h"
#include "qemu/module.h"
#include "lab_fabric.h"

/* Behind AER at 0x100. */
#define ACS_OFFSET 0x160

/* An identity of QEMU's range for experiments (docs/specs/pci-ids.rst). */
#define LAB_ROOT_PORT_DEVICE_ID 0x10f2

typedef struct LabPort {
    PCIESlot parent_obj;
    uint16_t acs_caps;
} LabPort;

typedef struct LabPortClass {
    PCIERootPortClass parent_class;
    void (*parent_realize)(PCIDevice *dev, Error **errp);
    DeviceReset parent_reset;
} LabPortClass;

#define TYPE_LAB_DOWNSTREAM_PORT "lab-downstream-port"
#define TYPE_LAB_ROOT_PORT "lab-root-port"
#define LAB_PORT(obj) ((LabPort *)(obj))
#define LAB_PORT_GET_CLASS(obj) ((LabPortClass *)object_get_class(OBJECT(obj)))

static const Property lab_port_props[] = {
    DEFINE_PROP_UINT16("acs-caps", LabPort, acs_caps, 0x5f),
};

static void lab_port_realize(PCIDevice *dev, Error **errp)
{
    Error *error = NULL;

    LAB_PORT_GET_CLASS(dev)->parent_realize(dev, &error);
    if (error) {
        error_propagate(errp, error);
        return;
    }
    lab_acs_init(dev, ACS_OFFSET, LAB_PORT(dev)->acs_caps);
}

static void lab_downstream_port_reset(DeviceState *qdev)
{
    LAB_PORT_GET_CLASS(qdev)->parent_reset(qdev);
    lab_acs_reset(PCI_DEVICE(qdev));
}

static void lab_downstream_port_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *k = PCI_DEVICE_CLASS(klass);
    LabPortClass *lc = (LabPortClass *)klass;

    lc->parent_realize = k->realize;
    k->realize = lab_port_realize;
    lc->parent_reset = dc->legacy_reset;
    device_class_set_legacy_reset(dc, lab_downstream_port_reset);
    device_class_set_props(dc, lab_port_props);
    dc->desc = "Downstream port of a switch, with ACS";
}

static uint8_t lab_root_port_aer_vector(const PCIDevice *dev)
{
    return 0;
}

static int lab_root_port_interrupts_init(PCIDevice *dev, Error **errp)
{
    return msi_init(dev, 0x60, 1, true, false, errp);
}

static void lab_root_port_interrupts_uninit(PCIDevice *dev)
{
    msi_uninit(dev);
}

static void lab_root_port_reset_hold(Object *obj, ResetType type)
{
    PCIERootPortClass *rpc = PCIE_ROOT_PORT_GET_CLASS(obj);

    rpc->parent_phases.hold(obj, type);
    lab_acs_reset(PCI_DEVICE(obj));
}

static void lab_root_port_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *k = PCI_DEVICE_CLASS(klass);
    PCIERootPortClass *rpc = PCIE_ROOT_PORT_CLASS(klass);
    LabPortClass *lc = (LabPortClass *)klass;

    lc->parent_realize = k->realize;
    k->realize = lab_port_realize;
    k->vendor_id = PCI_VENDOR_ID_REDHAT_QUMRANET;
    k->device_id = LAB_ROOT_PORT_DEVICE_ID;
    resettable_class_set_parent_phases(RESETTABLE_CLASS(klass), NULL,
                                       lab_root_port_reset_hold, NULL,
                                       &rpc->parent_phases);
    rpc->aer_vector = lab_root_port_aer_vector;
    rpc->interrupts_init = lab_root_port_interrupts_init;
    rpc->interrupts_uninit = lab_root_port_interrupts_uninit;
    rpc->exp_offset = 0x90;
    rpc->aer_offset = 0x100;
    rpc->ssvid_offset = 0x40;
    device_class_set_props(dc, lab_port_props);
    dc->desc = "Root port, with ACS";
}

static const TypeInfo lab_port_infos[] = {
    {
        .name = TYPE_LAB_DOWNSTREAM_PORT,
        .parent = TYPE_XIO3130_DOWNSTREAM,
        .instance_size = sizeof(LabPort),
        .class_size = sizeof(LabPortClass),
        .class_init = lab_downstream_port_class_init,
    },
    {
        .name = TYPE_LAB_ROOT_PORT,
        .parent = TYPE_PCIE_ROOT_PORT,
        .instance_size = sizeof(LabPort),
        .class_size = sizeof(LabPortClass),
        .class_init = lab_root_port_class_init,
    },
};

DEFINE_TYPES(lab_port_infos)
