/**
 * Models of QEMU 7.2 for x86-64 that are no disks, by the bus that they sit on: a machine's command line may have them.
 * Some bring a bus that disks sit on.
 */
const NAMES: ReadonlyArray<readonly [bus: string, names: string]> = [
  [
    '',
    'guest-loader hv-syndbg ipmi-bmc-extern ipmi-bmc-sim loader nvdimm nvme-subsys pc-dimm tpm-crb ' +
      'vmcoreinfo vmgenid',
  ],
  ['HDA', 'hda-duplex hda-micro hda-output'],
  [
    'ISA',
    'adlib cs4231a gus hyperv-testdev i8042 ib700 isa-applesmc isa-cirrus-vga isa-debug-exit isa-debugcon ' +
      'isa-fdc isa-ide isa-ipmi-bt isa-ipmi-kcs isa-parallel isa-serial isa-vga mc146818rtc ne2k_isa ' +
      'pc-testdev pvpanic sb16 sga tpm-tis vmmouse',
  ],
  ['IndustryPack', 'ipoctal232'],
  [
    'PCI',
    'AC97 AMDVI-PCI ES1370 VGA acpi-erst am53c974 ati-vga bochs-display cirrus-vga ctucan_pci ' +
      'cxl-downstream cxl-rp cxl-type3 cxl-upstream dc390 e1000 e1000-82544gc e1000-82545em e1000e edu ' +
      'i6300esb i82550 i82551 i82557a i82557b i82557c i82558a i82558b i82559a i82559b i82559c i82559er ' +
      'i82562 i82801 i82801b11-bridge ich9-ahci ich9-intel-hda ich9-usb-ehci1 ich9-usb-ehci2 ich9-usb-uhci1 ' +
      'ich9-usb-uhci2 ich9-usb-uhci3 ich9-usb-uhci4 ich9-usb-uhci5 ich9-usb-uhci6 intel-hda ioh3420 ' +
      'ivshmem-doorbell ivshmem-plain kvaser_pci lsi53c810 lsi53c895a megasas megasas-gen2 mioe3680_pci ' +
      'mptsas1068 ne2k_pci nec-usb-xhci pci-bridge pci-bridge-seat pci-ipmi-bt pci-ipmi-kcs pci-ohci ' +
      'pci-serial pci-serial-2x pci-serial-4x pci-testdev pcie-pci-bridge pcie-root-port pcm3680_pci pcnet ' +
      'piix3-ide piix3-usb-uhci piix4-ide piix4-usb-uhci pvpanic-pci pvrdma pvscsi pxb pxb-cxl pxb-pcie ' +
      'qemu-xhci qxl qxl-vga rocker rtl8139 sdhci-pci secondary-vga tpci200 tulip usb-ehci vfio-pci ' +
      'vfio-pci-igd-lpc-bridge vfio-pci-nohotplug vhost-scsi-pci vhost-scsi-pci-non-transitional ' +
      'vhost-scsi-pci-transitional vhost-user-fs-pci vhost-user-gpio-pci vhost-user-gpu-pci ' +
      'vhost-user-i2c-pci vhost-user-input-pci vhost-user-rng-pci vhost-user-scsi-pci ' +
      'vhost-user-scsi-pci-non-transitional vhost-user-scsi-pci-transitional vhost-user-vga ' +
      'vhost-user-vsock-pci vhost-user-vsock-pci-non-transitional vhost-vsock-pci ' +
      'vhost-vsock-pci-non-transitional virtio-9p-pci virtio-9p-pci-non-transitional ' +
      'virtio-9p-pci-transitional virtio-balloon-pci virtio-balloon-pci-non-transitional ' +
      'virtio-balloon-pci-transitional virtio-crypto-pci virtio-gpu-gl-pci virtio-gpu-pci ' +
      'virtio-input-host-pci virtio-iommu-pci virtio-keyboard-pci virtio-mem-pci virtio-mouse-pci ' +
      'virtio-net-pci virtio-net-pci-non-transitional virtio-net-pci-transitional virtio-pmem-pci ' +
      'virtio-rng-pci virtio-rng-pci-non-transitional virtio-rng-pci-transitional virtio-scsi-pci ' +
      'virtio-scsi-pci-non-transitional virtio-scsi-pci-transitional virtio-serial-pci ' +
      'virtio-serial-pci-non-transitional virtio-serial-pci-transitional virtio-tablet-pci virtio-vga ' +
      'virtio-vga-gl vmware-svga vmxnet3 x-pci-proxy-dev x3130-upstream xio3130-downstream',
  ],
  ['System', 'amd-iommu intel-iommu ramfb vmbus-bridge'],
  ['ccid-bus', 'ccid-card-emulated ccid-card-passthru'],
  ['i2c-bus', 'i2c-ddc smbus-ipmi'],
  [
    'usb-bus',
    'u2f-passthru usb-audio usb-bot usb-braille usb-ccid usb-host usb-hub usb-kbd usb-mouse usb-mtp ' +
      'usb-net usb-redir usb-serial usb-tablet usb-uas usb-wacom-tablet',
  ],
  [
    'virtio-bus',
    'vhost-scsi vhost-user-fs-device vhost-user-gpio-device vhost-user-gpu vhost-user-i2c-device ' +
      'vhost-user-input vhost-user-rng vhost-user-scsi vhost-user-vsock-device vhost-vsock-device ' +
      'virtio-9p-device virtio-balloon-device virtio-crypto-device virtio-gpu-device ' +
      'virtio-input-host-device virtio-iommu-device virtio-keyboard-device virtio-mem virtio-mouse-device ' +
      'virtio-net-device virtio-pmem virtio-rng-device virtio-scsi-device virtio-serial-device ' +
      'virtio-tablet-device',
  ],
  ['virtio-serial-bus', 'virtconsole virtserialport'],
];

/** The bus of each; '' for those that sit on none. */
export const OTHER_MODELS: ReadonlyMap<string, string> = new Map(
  NAMES.flatMap(([bus, names]) => names.split(' ').map((name): [string, string] => [name, bus])),
);

/** What some of them are also called. */
export const OTHER_ALIASES: { readonly [alias: string]: string } = {
  ahci: 'ich9-ahci',
  lsi: 'lsi53c895a',
  'virtio-9p': 'virtio-9p-pci',
  'virtio-scsi': 'virtio-scsi-pci',
  'e1000-82540em': 'e1000',
  'virtio-net': 'virtio-net-pci',
  'virtio-input-host': 'virtio-input-host-pci',
  'virtio-keyboard': 'virtio-keyboard-pci',
  'virtio-mouse': 'virtio-mouse-pci',
  'virtio-serial': 'virtio-serial-pci',
  'virtio-tablet': 'virtio-tablet-pci',
  'virtio-gpu-gl': 'virtio-gpu-gl-pci',
  'virtio-gpu': 'virtio-gpu-pci',
  ac97: 'AC97',
  es1370: 'ES1370',
  'virtio-balloon': 'virtio-balloon-pci',
  'virtio-iommu': 'virtio-iommu-pci',
  'virtio-rng': 'virtio-rng-pci',
};

/** Models that pass a device of the host on, or a disk that another program serves. */
export const UNSUPPORTED_MODELS: readonly string[] = [
  'scsi-block',
  'scsi-generic',
  'sd-card',
  'vhost-user-blk',
  'vhost-user-blk-pci',
  'vhost-user-blk-pci-non-transitional',
  'vhost-user-blk-pci-transitional',
];
