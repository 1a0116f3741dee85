/** What -machine may be given, by QEMU 7.2's types, as qom-list-properties tells it of a type of machine. */

type Names = ReadonlyArray<readonly [type: string, names: string]>;

const EVERY: Names = [
  ['string', 'type kernel dt-compatible initrd firmware memory-encryption dumpdtb dtb append'],
  ['bool', 'graphics usb dump-guest-core mem-merge suppress-vmdesc'],
  ['int', 'phandle-start'],
  ['BootConfiguration', 'boot'],
  ['MemorySizeConfiguration', 'memory'],
  ['SMPConfiguration', 'smp'],
  ['link<confidential-guest-support>', 'confidential-guest-support'],
  ['link<memory-backend>', 'memory-backend'],
  ['child<container>', 'peripheral peripheral-anon'],
];

const PC: Names = [
  ['OnOffAuto', 'smm acpi pit pic vmport'],
  ['string', 'x-oem-id x-oem-table-id nvdimm-persistence'],
  ['str', 'smbios-entry-point-type pflash0 pflash1 pcspk-audiodev'],
  ['size', 'max-fw-size max-ram-below-4g'],
  ['bool', 'default-bus-bypass-iommu sata i8042 hpet smbus hmat cxl nvdimm'],
  ['int', 'device-memory-region-size'],
  ['uint64_t', 'bus-lock-ratelimit'],
  ['SgxEPC', 'sgx-epc'],
  ['CXLFixedMemoryWindow', 'cxl-fmw'],
  ['child<cfi.pflash01>', 'system.flash0 system.flash1'],
];

/** Of one of the machines that query-machines names. */
export function machineProperties(machine: string): Array<{ name: string; type: string }> {
  const groups = machine.startsWith('pc-') ? [...EVERY, ...PC] : EVERY;
  return groups.flatMap(([type, names]) => names.split(' ').map((name) => ({ name, type })));
}
