import { BlockError } from '../base/error.js';
import { openTemporary } from '../block/temporary-image.js';
import type { Node } from '../block/node.js';
import type { Opener } from '../block/open.js';
import { openNamed } from '../block/open-named.js';
import {
  Drive,
  type DriveAccounting,
  type DriveInterface,
  takeMedium,
  USUAL_ACCOUNTING,
} from '../attach/drive.js';
import { checkedIntervals } from '../programs/arguments/drive-accounting.js';
import type { DriveOptions } from '../programs/arguments/drive-options.js';
import type { FlatOptions } from '../schema/flat.js';
import { areLimited, checkedLimits } from '../block/objects/throttle-limits.js';
import type { Parts } from './parts.js';

type Drives = Parts<'graph' | 'opener' | 'drives' | 'machine' | 'isIncoming' | 'temporaryFolder'>;

/** How many units a bus of each interface has; of the others a drive's number is its bus and unit in one. */
const UNITS: { readonly [kind in DriveInterface]?: number } = { ide: 2, scsi: 7 };

/**
 * Adds a drive: -drive, -hda and the like, drive_add.
 * Errors: invalid in QEMU's words, exists, unsupported; those of opening.
 */
export async function addDrive(engine: Drives, options: DriveOptions): Promise<Drive> {
  // A machine without buses has no other use for it.
  const kind = options.interface ?? (engine.machine.type === 'none' ? 'none' : 'ide');
  const { bus, unit } = placeOf(engine, kind, options);
  const id = options.id ?? defaultId(kind, bus, unit, options.isCdrom);
  if (engine.drives.has(id)) throw new BlockError('exists', `Duplicate ID '${id}' for drive`);
  refuseUnsupported(options);
  if (engine.graph.keeper) assertKept(options);
  const limits = checkedLimits(options.throttling.limits);
  const node = hasImage(options) ? await openMedium(engine, options) : undefined;
  const { isCdrom, writethrough, readErrors, writeErrors } = options;
  try {
    const accounting = node ? accountingOf(options) : USUAL_ACCOUNTING;
    const place = { id, interface: kind, bus, unit, isCdrom };
    const properties = { ...place, writethrough, readErrors, writeErrors, accounting };
    if (engine.graph.nodes.has(id))
      throw new BlockError('exists', `Device name '${id}' conflicts with an existing node name`);
    const drive = await Drive.create(engine.graph, properties, node);
    engine.drives.set(id, drive);
    drive.backend.mediumWasReadOnly = options.isReadOnly;
    if (areLimited(limits)) {
      const group = engine.graph.objects.groupNamed(options.throttling.group ?? id);
      drive.backend.throttleGroup = group;
      group.limits = limits;
    }
    return drive;
  } catch (error) {
    if (node) await engine.graph.release([node]);
    throw error;
  }
}

/** drive_del: commands know the drive no more, and a device that has it loses its medium. */
export async function removeDrive(engine: Parts<'graph' | 'drives'>, drive: Drive): Promise<void> {
  await takeMedium(engine.graph, drive.backend);
  drive.forget();
  engine.drives.delete(drive.id);
}

/** As QEMU has it, it begins with the first image: a drive without one counts as usual, whatever is asked. */
function accountingOf({ accounting }: DriveOptions): DriveAccounting {
  return { ...accounting, intervals: checkedIntervals(accounting.intervals) };
}

function refuseUnsupported(options: DriveOptions): void {
  const refuse = (name: string): never => {
    throw new BlockError('unsupported', `Parameter '${name}' is not supported by livedisk yet`);
  };
  if (options.detectZeroes !== 'off' && !hasImage(options)) refuse('detect-zeroes');
}

/** Errors: unsupported, for a drive that a state cannot bring back. */
export function assertKept({ isSnapshot }: Pick<DriveOptions, 'isSnapshot'>): void {
  if (isSnapshot !== true) return;
  const text = 'snapshot=on does not go together with --state: what is written is kept nowhere';
  throw new BlockError('unsupported', text);
}

/** No name and no options of an image: the drive has no medium yet. */
function hasImage({ filename, image }: DriveOptions): boolean {
  return filename !== undefined || image.entries().some(([key]) => !key.startsWith('cache.'));
}

async function openMedium(engine: Drives, options: DriveOptions): Promise<Node> {
  const { isReadOnly, isSnapshot = false, filename, aio } = options;
  const image = options.image.copy();
  if (aio !== undefined && filename !== undefined) await setAio(engine.opener, image, filename, aio);
  const context = { readOnly: isReadOnly || isSnapshot, inactive: engine.isIncoming };
  const node = await openNamed(engine.opener, filename, image, context);
  if (aio !== undefined) forgetAio(node);
  try {
    const top = isSnapshot ? await putTemporaryOverlay(engine, node, isReadOnly) : node;
    top.detectZeroes(options.detectZeroes);
    if (options.copyOnRead) top.skipFilters().io.copiesOnRead = true;
    return top;
  } catch (error) {
    await engine.graph.release([node]);
    throw error;
  }
}

/** Of the file, where it is one that has such an option. */
async function setAio(opener: Opener, image: FlatOptions, filename: string, aio: string): Promise<void> {
  const asked = image.get('driver');
  const format = typeof asked === 'string' ? opener.drivers.find(asked) : undefined;
  const below = format?.kind === 'protocol' ? format.name : (await opener.parseFilename(filename))['driver'];
  const file = typeof below === 'string' ? opener.drivers.find(below) : undefined;
  if (file && 'aio' in file.options.members) image.put(format === file ? 'aio' : 'file.aio', aio);
}

/** It is the drive's word, not an option of the node: whoever reopens that need not repeat it. */
function forgetAio({ storage }: Node): void {
  const { aio: _, ...options } = storage.options;
  storage.options = options;
}

/** Writes go to a file that is nobody's any more: they end with the drive. */
async function putTemporaryOverlay(engine: Drives, below: Node, readOnly: boolean): Promise<Node> {
  const { opener, graph, temporaryFolder: folder } = engine;
  const context = { readOnly, noBacking: true, cache: { direct: false, 'no-flush': true } };
  const overlay = await openTemporary(opener, { folder, sizeBytes: below.lengthBytes }, (filename) =>
    opener.openImage(filename, 'qcow2', context),
  );
  await graph.transaction((transaction) => void transaction.attach(overlay, 'backing', below));
  return overlay;
}

function placeOf(engine: Drives, kind: DriveInterface, options: DriveOptions): { bus: number; unit: number } {
  const units = engine.machine.placesOf(kind)?.units ?? UNITS[kind] ?? 0;
  const most = UNITS[kind] === undefined ? 0 : units;
  let { bus = 0, unit } = options;
  if (options.index !== undefined) {
    bus = most === 0 ? 0 : Math.floor(options.index / most);
    unit = most === 0 ? options.index : options.index % most;
  }
  if (unit === undefined)
    for (unit = 0; isTaken(engine, kind, bus, unit); unit++) {
      if (most === 0 || unit + 1 < most) continue;
      unit = -1;
      bus++;
    }
  if (most > 0 && unit >= most) throw new BlockError('invalid', `unit ${unit} too big (max is ${most - 1})`);
  if (isTaken(engine, kind, bus, unit)) {
    const index = bus * most + unit;
    throw new BlockError('exists', `drive with bus=${bus}, unit=${unit} (index=${index}) exists`);
  }
  return { bus, unit };
}

function isTaken({ drives }: Drives, kind: DriveInterface, bus: number, unit: number): boolean {
  return [...drives.values()].some(({ properties }) => {
    return properties.interface === kind && properties.bus === bus && properties.unit === unit;
  });
}

/** As QEMU names drives that have no id. */
function defaultId(kind: DriveInterface, bus: number, unit: number, isCdrom: boolean): string {
  const isOnBus = UNITS[kind] !== undefined;
  const media = isOnBus ? (isCdrom ? '-cd' : '-hd') : '';
  return isOnBus ? `${kind}${bus}${media}${unit}` : `${kind}${unit}`;
}
