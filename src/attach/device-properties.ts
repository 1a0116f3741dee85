import { bool, enumOf, int, type Members, optional, size, str, type Type, uint32 } from '../schema/types.js';

/** Properties that -device and device_add take, by model as QEMU 7.2 has them. */

const ON_OFF_AUTO = enumOf('OnOffAuto', ['auto', 'on', 'off']);
const ON_ERROR = enumOf('BlockdevOnError', ['report', 'ignore', 'enospc', 'stop', 'auto']);

/** `names`: words, with what they have in common in front of them. */
function all<T>(type: Type<T>, names: string): Members {
  return Object.fromEntries(names.split(' ').map((name) => [name, optional(type)]));
}

/** What every front end of a disk takes. */
export const BLOCK_PROPERTIES: Members = {
  drive: optional(str),
  'share-rw': optional(bool),
  'write-cache': optional(ON_OFF_AUTO),
  ...all(size, 'logical_block_size physical_block_size min_io_size opt_io_size discard_granularity'),
  ...all(ON_OFF_AUTO, 'backend_defaults account-invalid account-failed'),
  'x-endpoint': optional(str),
};

const BOOT: Members = { bootindex: optional(int) };
const GEOMETRY: Members = all(uint32, 'cyls heads secs lcyls lheads lsecs');
const ERROR_POLICY: Members = { rerror: optional(ON_ERROR), werror: optional(ON_ERROR) };

const PCI: Members = {
  ...all(uint32, 'acpi-index rombar romsize'),
  ...all(str, 'addr failover_pair_id romfile'),
  ...all(bool, 'multifunction x-pcie-extcap-init x-pcie-lnksta-dllla'),
};

const VIRTIO: Members = {
  ...all(bool, 'any_layout event_idx indirect_desc iommu_platform notify_on_empty packed queue_reset'),
  ...all(bool, 'use-disabled-flag use-started x-disable-legacy-check'),
};

const VIRTIO_PCI: Members = {
  ...PCI,
  ...all(bool, 'aer ats disable-modern ioeventfd migrate-extra modern-pio-notify page-per-vq'),
  ...all(bool, 'virtio-pci-bus-master-bug-migration x-ats-page-aligned x-disable-pcie x-pcie-deverr-init'),
  ...all(bool, 'x-ignore-backend-features x-pcie-flr-init x-pcie-lnkctl-init x-pcie-pm-init'),
  'disable-legacy': optional(ON_OFF_AUTO),
  vectors: optional(uint32),
};

const VIRTIO_BLK_DEVICE: Members = {
  ...VIRTIO,
  ...BLOCK_PROPERTIES,
  ...BOOT,
  ...GEOMETRY,
  ...ERROR_POLICY,
  ...all(bool, 'config-wce discard report-discard-granularity request-merging scsi seg-max-adjust'),
  ...all(bool, 'write-zeroes x-enable-wce-if-config-wce'),
  ...all(uint32, 'max-discard-sectors max-write-zeroes-sectors num-queues queue-size'),
  ...all(str, 'iothread serial'),
};

const SCSI_DISK: Members = {
  ...BLOCK_PROPERTIES,
  ...BOOT,
  ...ERROR_POLICY,
  ...all(uint32, 'channel lun port_index scsi-id max_io_size'),
  ...all(str, 'device_id product serial vendor ver wwn port_wwn'),
  scsi_version: optional(int),
  quirk_mode_page_vendor_specific_apple: optional(bool),
};

const IDE_DISK: Members = {
  ...BLOCK_PROPERTIES,
  ...BOOT,
  ...ERROR_POLICY,
  ...all(str, 'model serial ver wwn'),
  unit: optional(uint32),
};

const VIRTIO_SCSI: Members = {
  ...VIRTIO,
  ...all(uint32, 'cmd_per_lun max_sectors num_queues virtqueue_size'),
  ...all(bool, 'hotplug param_change seg_max_adjust'),
  iothread: optional(str),
};

const USB: Members = {
  ...all(bool, 'attached msos-desc'),
  ...all(str, 'pcap port serial'),
};

/** By the models' names. A model that is not here takes what it is given: it has no part in what livedisk does. */
export const DEVICE_PROPERTIES: { readonly [model: string]: Members } = {
  'virtio-blk-device': VIRTIO_BLK_DEVICE,
  'virtio-blk-pci': { ...VIRTIO_BLK_DEVICE, ...VIRTIO_PCI, class: optional(uint32) },
  'virtio-scsi-device': VIRTIO_SCSI,
  'virtio-scsi-pci': { ...VIRTIO_SCSI, ...VIRTIO_PCI },
  'scsi-hd': {
    ...SCSI_DISK,
    ...GEOMETRY,
    ...all(bool, 'dpofua removable'),
    ...all(uint32, 'max_unmap_size rotation_rate'),
  },
  'scsi-cd': {
    ...SCSI_DISK,
    ...all(bool, 'quirk_mode_page_apple_vendor quirk_mode_page_truncated quirk_mode_sense_rom_use_dbd'),
  },
  'ide-hd': { ...IDE_DISK, ...GEOMETRY, 'bios-chs-trans': optional(str), rotation_rate: optional(uint32) },
  'ide-cd': IDE_DISK,
  nvme: {
    ...PCI,
    ...BLOCK_PROPERTIES,
    ...BOOT,
    ...all(uint32, 'aer_max_queued aerl cmb_size_mb max_ioqpairs mdts msix_qsize num_queues vsl zoned.zasl'),
    ...all(uint32, 'smart_critical_warning sriov_max_vfs sriov_max_vi_per_vf sriov_max_vq_per_vf'),
    ...all(uint32, 'sriov_vi_flexible sriov_vq_flexible'),
    ...all(bool, 'ioeventfd msix-exclusive-bar use-intel-id zoned.auto_transition'),
    ...all(str, 'pmrdev serial subsys'),
  },
  'nvme-ns': {
    ...BLOCK_PROPERTIES,
    ...BOOT,
    ...all(uint32, 'mcl ms mset msrc mssrl nsid pi pif pil'),
    ...all(uint32, 'zoned.descr_ext_size zoned.max_active zoned.max_open zoned.numzrwa'),
    ...all(size, 'zoned.zone_capacity zoned.zone_size zoned.zrwafg zoned.zrwas'),
    ...all(bool, 'detached eui64-default shared zoned zoned.cross_read'),
    ...all(str, 'eui64 uuid'),
  },
  'usb-storage': {
    ...USB,
    ...BLOCK_PROPERTIES,
    ...BOOT,
    ...ERROR_POLICY,
    ...all(bool, 'commandlog removable'),
  },
  floppy: { ...BLOCK_PROPERTIES, unit: optional(uint32), 'drive-type': optional(str) },
};
