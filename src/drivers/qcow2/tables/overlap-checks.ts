import { BlockError } from '../../../base/error.js';
import type { Settings } from '../../../block/driver.js';
import type { QCOW2_OPTIONS } from '../../../schema/blockdev-options.js';
import type { FlatOptions } from '../../../schema/flat.js';
import {
  OVERLAP_STRUCTURES,
  OVERLAP_TEMPLATES,
  type OverlapStructure,
  type OverlapTemplate,
} from '../../../schema/overlap-checks.js';
import { scalarText } from '../../../schema/types.js';

/** Which structures of an image no write may hit, by the names that MetadataMap has for them. */
export type OverlapChecks = ReadonlySet<string>;

/** What MetadataMap calls them. What is not listed is always checked. */
const NAMES: Readonly<Record<OverlapStructure, string>> = {
  'main-header': 'qcow2_header',
  'active-l1': 'active L1 table',
  'active-l2': 'active L2 table',
  'refcount-table': 'refcount table',
  'refcount-block': 'refcount block',
  'snapshot-table': 'snapshot table',
  'inactive-l1': 'inactive L1 table',
  'inactive-l2': 'inactive L2 table',
  'bitmap-directory': 'bitmap directory',
};

const CONSTANT: readonly OverlapStructure[] = [
  'main-header',
  'active-l1',
  'refcount-table',
  'snapshot-table',
  'bitmap-directory',
];
const CACHED: readonly OverlapStructure[] = [...CONSTANT, 'active-l2', 'refcount-block', 'inactive-l1'];

/** QEMU's: what always lies where it is; what is in memory anyway; also the tables of snapshots, which must be read. */
const TEMPLATES: Readonly<Record<OverlapTemplate, readonly OverlapStructure[]>> = {
  none: [],
  constant: CONSTANT,
  cached: CACHED,
  all: OVERLAP_STRUCTURES,
};

/** What `overlap-check` leaves out; the rest is checked. */
export function uncheckedStructures({
  'overlap-check': given,
}: Settings<typeof QCOW2_OPTIONS>): OverlapChecks {
  const { template = 'cached', ...flags } = typeof given === 'object' ? given : { template: given };
  const single: Partial<Record<OverlapStructure, boolean>> = flags;
  const left = OVERLAP_STRUCTURES.filter((one) => !(single[one] ?? TEMPLATES[template].includes(one)));
  return new Set(left.map((one) => NAMES[one]));
}

/** Flat options have the template by two names. Errors: invalid, in QEMU's words. */
export function moderniseOverlapCheck(options: FlatOptions): void {
  const [template, other] = ['overlap-check', 'overlap-check.template'].map((name) => {
    const value = options.take(name);
    return value === undefined ? undefined : scalarText(value, name);
  });
  if (template !== undefined && other !== undefined && template !== other)
    throw invalid(
      `Conflicting values for qcow2 options 'overlap-check' ('${template}') and ` +
        `'overlap-check.template' ('${other}')`,
    );
  const chosen = template ?? other;
  if (chosen === undefined) return;
  if (!OVERLAP_TEMPLATES.some((one) => one === chosen))
    throw invalid(
      `Unsupported value '${chosen}' for qcow2 option 'overlap-check'. Allowed are any of the following: ` +
        OVERLAP_TEMPLATES.join(', '),
    );
  options.put('overlap-check.template', chosen);
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message, { errno: 'EINVAL' });
}
