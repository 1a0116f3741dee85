import { bool, int, size, str, type Type, uint32 } from '../schema/types.js';
import type { DeviceModel } from './device-models.js';

/** What QEMU 7.2 calls the types of properties where that does not follow from what livedisk takes. */
const OF_NAMES: ReadonlyMap<string, string> = new Map(
  (
    [
      ['uint8', 'aerl mdts msrc mset pi pif pil smart_critical_warning sriov_max_vfs sriov_max_vi_per_vf'],
      ['uint8', 'sriov_max_vq_per_vf vsl zoned.zasl'],
      ['uint16', 'ms msix_qsize mssrl num-queues port_index queue-size rotation_rate sriov_vi_flexible'],
      ['uint16', 'sriov_vq_flexible'],
      ['uint64', 'eui64 max_io_size max_unmap_size port_wwn wwn'],
      ['int32', 'addr'],
      ['BiosAtaTranslation', 'bios-chs-trans'],
      ['FdcDriveType', 'drive-type'],
      ['link<iothread>', 'iothread'],
      ['link<memory-backend>', 'pmrdev'],
      ['link<nvme-subsys>', 'subsys'],
    ] as const
  ).flatMap(([type, names]) => names.split(' ').map((name): [string, string] => [name, type])),
);

const BUILTIN = new Map<Type<unknown>, string>([
  [bool, 'bool'],
  [int, 'int32'],
  [size, 'size'],
  [str, 'str'],
  [uint32, 'uint32'],
]);

/** What a model takes as device-list-properties tells it: names and QEMU's types; nothing of a model without a part here. */
export function propertyTypes({
  name: model,
  properties,
}: DeviceModel): Array<{ name: string; type: string }> {
  if (!properties) return [];
  const told = Object.entries(properties)
    // Those models are the two settings of these.
    .filter(([name]) => !(model.endsWith('transitional') && /^disable-(legacy|modern)$/.test(name)))
    .map(([name, { type }]) => ({ name, type: OF_NAMES.get(name) ?? BUILTIN.get(type) ?? type.name }));
  const [, kind] = /^(virtio-[a-z]+)-pci/.exec(model) ?? [];
  return kind === undefined ? told : [...told, { name: 'virtio-backend', type: `child<${kind}-device>` }];
}
