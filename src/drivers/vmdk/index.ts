import type { DriverDescription } from '../../block/driver.js';
import { VMDK_OPTIONS } from '../../schema/blockdev-options.js';
import { VMDK_TOOL_CREATE } from '../../schema/create-options.js';
import { FormatNode } from '../tables/format-node.js';
import { checkNewVmdk, createVmdk } from './create.js';
import { isDescriptor } from './descriptor.js';
import { loadVmdk, namedExtents } from './image.js';
import { ESX_MAGIC, hasMagic, MAGIC } from './sparse-header.js';

/** VMware's disks: of one sparse extent, or of several files that a descriptor names. */
export const vmdkDriver: DriverDescription<typeof VMDK_OPTIONS, typeof VMDK_TOOL_CREATE> = {
  name: 'vmdk',
  kind: 'format',
  opensWithoutWriting: true,
  options: VMDK_OPTIONS,
  compresses: true,
  namedFiles: (context) => namedExtents(context),
  open: (context, settings) => FormatNode.open(context, settings, loadVmdk),
  probe: (header) =>
    hasMagic(header, MAGIC) || hasMagic(header, ESX_MAGIC) || isDescriptor(header) ? 100 : 0,
  createOptions: VMDK_TOOL_CREATE,
  toolOptions: [
    { name: 'size' },
    { name: 'adapter_type', member: 'adapter-type', hasNamelessErrors: true },
    { name: 'backing_file' },
    { name: 'backing_fmt' },
    { name: 'compat6', member: 'compat6', isAlwaysShown: true },
    { name: 'hwversion', member: 'hwversion', isAlwaysShown: true, shownAs: 'undefined' },
    { name: 'toolsversion', member: 'toolsversion' },
    { name: 'subformat', member: 'subformat', hasNamelessErrors: true },
    { name: 'zeroed_grain', member: 'zeroed-grain' },
  ],
  checkNew: checkNewVmdk,
  create: createVmdk,
};
