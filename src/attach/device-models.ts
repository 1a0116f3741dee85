import { BlockError } from '../base/error.js';
import type { Members } from '../schema/types.js';
import { DEVICE_PROPERTIES } from './device-properties.js';
import { OTHER_ALIASES, OTHER_MODELS, UNSUPPORTED_MODELS } from './other-models.js';

/** A disk of the guest, as far as storage knows it. */
export interface DiskModel {
  /** Medium that can be taken out; with a tray where `tray` says so. */
  readonly removable: boolean;
  readonly tray: boolean;
  /** Only reads, whatever the node allows. */
  readonly readsOnly: boolean;
  /** Takes a node that may only be read. */
  readonly takesReadOnly: boolean;
  /** Exists without a medium. */
  readonly mayBeEmpty: boolean;
  /** Its medium may change its size while it is there. */
  readonly resizable: boolean;
  /** Whether the policies for errors are its own, and query-block tells its I/O status. */
  readonly hasIoStatus: boolean;
  /** The object below the device's own that holds the disk, by the device's id. */
  inner?(path: string, id: string): string;
  /** The model that speaks of the property `drive`. */
  readonly driveOwner: string;
  readonly requiresSerial?: boolean;
}

/** A model of a device, as -device and device_add name it. */
export interface DeviceModel {
  readonly name: string;
  readonly bus: string;
  /** undefined: livedisk does not look at what it is given. */
  readonly properties: Members | undefined;
  readonly disk?: DiskModel;
  /** Kinds of buses that it brings. */
  readonly brings: readonly string[];
}

const HARD_DISK = {
  removable: false,
  tray: false,
  readsOnly: false,
  takesReadOnly: true,
  mayBeEmpty: false,
  resizable: true,
  hasIoStatus: true,
} as const;
const CD = { ...HARD_DISK, removable: true, tray: true, readsOnly: true, mayBeEmpty: true, resizable: false };

const VIRTIO_BLK: DiskModel = {
  ...HARD_DISK,
  driveOwner: 'virtio-blk-device',
  inner: (path) => `${path}/virtio-backend`,
};
const NVME: DiskModel = { ...HARD_DISK, driveOwner: 'nvme', resizable: false, hasIoStatus: false };

/** The disks: bus and what kind of disk each is. */
const DISKS: { readonly [name: string]: readonly [bus: string, disk: DiskModel] } = {
  'virtio-blk-device': ['virtio-bus', { ...HARD_DISK, driveOwner: 'virtio-blk-device' }],
  'virtio-blk-pci': ['PCI', VIRTIO_BLK],
  'virtio-blk-pci-transitional': ['PCI', VIRTIO_BLK],
  'virtio-blk-pci-non-transitional': ['PCI', VIRTIO_BLK],
  'scsi-hd': ['SCSI', { ...HARD_DISK, driveOwner: 'scsi-hd' }],
  'scsi-cd': ['SCSI', { ...CD, driveOwner: 'scsi-cd' }],
  'ide-hd': ['IDE', { ...HARD_DISK, driveOwner: 'ide-hd', takesReadOnly: false }],
  'ide-cd': ['IDE', { ...CD, driveOwner: 'ide-cd' }],
  nvme: ['PCI', { ...NVME, mayBeEmpty: true, requiresSerial: true }],
  'nvme-ns': ['nvme-bus', { ...NVME, driveOwner: 'nvme-ns' }],
  'usb-storage': [
    'usb-bus',
    { ...HARD_DISK, driveOwner: 'usb-storage', inner: (path, id) => `${path}/${id}.0/legacy[0]` },
  ],
  floppy: [
    'floppy-bus',
    {
      ...HARD_DISK,
      driveOwner: 'floppy',
      removable: true,
      mayBeEmpty: true,
      resizable: false,
      hasIoStatus: false,
    },
  ],
};

const ALIASES: { readonly [alias: string]: string } = { ...OTHER_ALIASES, 'virtio-blk': 'virtio-blk-pci' };

/** What brings buses for disks. */
const BRINGS: ReadonlyArray<readonly [names: RegExp, buses: readonly string[]]> = [
  [/^(virtio-scsi|lsi53c|megasas|mptsas|pvscsi|am53c974|dc390|usb-uas|usb-bot)/, ['SCSI']],
  [/^(ich9-ahci|piix[34]-ide|isa-ide)/, ['IDE']],
  [/^isa-fdc/, ['floppy-bus']],
  [/^(ich9-usb|nec-usb|pci-ohci|piix[34]-usb|qemu-xhci|usb-ehci|usb-hub)/, ['usb-bus']],
  [/^(pci-bridge|pcie-|ioh3420|pxb|i82801b11|x3130|xio3130|cxl-)/, ['PCI']],
  [/^nvme$/, ['nvme-bus']],
  [/^virtio-serial/, ['virtio-serial-bus']],
];

/** By a model's name or alias. Errors: invalid in QEMU's words; unsupported. */
export function deviceModel(given: string): DeviceModel {
  const name = Object.hasOwn(ALIASES, given) ? (ALIASES[given] ?? given) : given;
  const brings = BRINGS.find(([names]) => names.test(name))?.[1] ?? [];
  const found = Object.hasOwn(DISKS, name) ? DISKS[name] : undefined;
  const properties = DEVICE_PROPERTIES[name.replace(/(-non)?-transitional$/, '')];
  if (found) {
    const [bus, disk] = found;
    return { name, bus, properties, disk, brings };
  }
  const bus = name.endsWith('-x86_64-cpu') ? '' : OTHER_MODELS.get(name);
  if (bus !== undefined) return { name, bus, properties, brings };
  if (UNSUPPORTED_MODELS.includes(name))
    throw new BlockError('unsupported', `Device model '${given}' is not supported by livedisk`);
  throw new BlockError('invalid', `'${given}' is not a valid device model name`);
}

/** All models by name, no aliases. */
export function deviceModelNames(): string[] {
  return [...Object.keys(DISKS), ...OTHER_MODELS.keys()];
}

/** `name "NAME", bus BUS` and the aliases, as -device help lists them. */
export function deviceHelp(): string {
  const aliases = new Map(Object.entries(ALIASES).map(([alias, name]) => [name, alias]));
  const line = (name: string, bus: string): string => {
    const alias = aliases.get(name);
    return `name "${name}"${bus && `, bus ${bus}`}${alias === undefined ? '' : `, alias "${alias}"`}\n`;
  };
  const disks = Object.entries(DISKS).map(([name, [bus]]) => line(name, bus));
  const others = [...OTHER_MODELS].map(([name, bus]) => line(name, bus));
  return `Storage devices:\n${disks.sort().join('')}\nOther devices, without effect here:\n${others.sort().join('')}`;
}
