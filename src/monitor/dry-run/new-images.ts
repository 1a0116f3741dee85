import { BlockError } from '../../base/error.js';
import { KiB } from '../../base/limits.js';
import { assertOverlayFits } from '../../block/chain-limit.js';
import { hasProtocol } from '../../block/filename.js';
import { findDevice, findRoot } from '../../block/find-node.js';
import type { Node } from '../../block/node.js';
import type { BackupPlan } from '../../jobs/plans/backup.js';
import { commonPlan } from '../../jobs/plans/plan.js';
import { surveyNew } from '../../jobs/plans/survey.js';
import type { CommandArguments } from '../../schema/commands.js';
import { assertNotOneOf } from '../blockdev.js';
import { checkDriveBackup } from '../mirror-backup.js';
import type { Parts } from '../parts.js';
import { checkSnapshot, checkSnapshotSync, putOverlay } from '../snapshot.js';
import type { DryRunAnswer } from './jobs.js';
import { DryRunReport } from './report.js';

type Engine = Parts<'graph' | 'jobs' | 'opener' | 'print'>;

/** Of formats that have clusters, unless they are told otherwise. */
const USUAL_CLUSTER_BYTES = 64 * KiB;

/** What a command makes beside the disk. */
interface NewImage {
  readonly file: string;
  readonly format: string;
  readonly isNew: boolean;
  /** The new image's own backing file, or a layer of the disk that it must not take the place of. */
  readonly disk: Node;
  readonly backing: Node | undefined;
}

export async function dryDriveMirror(
  engine: Engine,
  args: CommandArguments<'drive-mirror'>,
): Promise<DryRunAnswer> {
  const report = new DryRunReport();
  const source = await report.attempt(() => {
    const node = findRoot(engine.graph, args.device);
    node.assertNotBlocked();
    engine.jobs.check({ kind: 'mirror', ...commonPlan(args, node) });
    if (args['node-name'] !== undefined) engine.graph.checkNewName(args['node-name']);
    return node;
  });
  if (source) {
    report.say(
      `The disk of [${source.name}] is copied into '${args.target}', with what guests write meanwhile.`,
    );
    const below = args.sync === 'full' ? undefined : args.sync === 'none' ? source : source.backingNode();
    await checkCopy(engine, source, { ...args, backing: below }, report);
  }
  return { 'x-dry-run': report.result() };
}

export async function dryDriveBackup(
  engine: Engine,
  args: CommandArguments<'drive-backup'>,
): Promise<DryRunAnswer> {
  const report = new DryRunReport();
  const source = await report.attempt(() => {
    checkDriveBackup(engine, args);
    return findDevice(engine.graph, args.device);
  });
  if (source) {
    report.say(`What [${source.name}] holds at the moment of the start goes into '${args.target}'.`);
    const below = args.sync === 'none' ? source : args.sync === 'top' ? source.backingNode() : undefined;
    await checkCopy(engine, source, { ...args, backing: below }, report);
  }
  return { 'x-dry-run': report.result() };
}

interface CopyRequest {
  readonly target: string;
  readonly format?: string;
  readonly mode?: 'existing' | 'absolute-paths';
  readonly sync: BackupPlan['sync'];
  readonly bitmap?: string;
  readonly backing: Node | undefined;
}

async function checkCopy(
  engine: Engine,
  source: Node,
  { target: file, format: asked, mode, sync, bitmap, backing }: CopyRequest,
  report: DryRunReport,
): Promise<void> {
  const format = asked ?? source.skipFilters().driver.name;
  const isNew = mode !== 'existing';
  await checkNewImage(engine, { file, format, isNew, disk: source, backing }, report);
  const hasTables = engine.opener.drivers.find(format)?.options.backing === true;
  const clusterBytes = hasTables ? USUAL_CLUSTER_BYTES : 0;
  const within =
    bitmap === undefined || sync === 'full' || sync === 'top' ? undefined : source.findBitmap(bitmap);
  const found = await report.attempt(() => surveyNew(engine.graph, source, { sync, clusterBytes, within }));
  if (!found) return;
  report.surveyed(found);
  if (!hasProtocol(file)) await report.checkRoom(engine.opener.host, file, found.newBytes);
}

/** What can be told of a file before it is made. */
async function checkNewImage(engine: Engine, image: NewImage, report: DryRunReport): Promise<void> {
  const { file, format, isNew, disk, backing } = image;
  const { files } = engine.opener.host;
  await report.attempt(async () => {
    if (backing && isNew) assertOverlayFits(backing);
    const driver = engine.opener.drivers.find(format);
    if (!driver) throw new BlockError('invalid', `Unknown file format '${format}'`);
    if (isNew && !driver.create && !driver.createFile)
      throw new BlockError('unsupported', `Format driver '${format}' does not support image creation`);
    if (isNew && backing && !driver.options.backing)
      throw new BlockError('unsupported', `Format driver '${format}' has no backing files`);
    if (hasProtocol(file)) return;
    const there = await files.stat(file);
    if (!isNew && !there)
      throw new BlockError('not-found', `Could not open '${file}': No such file or directory`);
    if (isNew) await assertNotOneOf(engine, file, disk, backing);
    if (isNew && there && !there.isBlockDevice) report.say(`What is in the file '${file}' now is lost.`);
  });
}

export async function drySnapshotSync(
  engine: Engine,
  args: CommandArguments<'blockdev-snapshot-sync'>,
): Promise<DryRunAnswer> {
  const report = new DryRunReport();
  const file = args['snapshot-file'];
  const old = await report.attempt(() => checkSnapshotSync(engine, args));
  if (old) {
    report.say(`'${file}' takes what guests write from then on; [${old.name}] stays as it is, read-only.`);
    const isNew = args.mode !== 'existing';
    await checkNewImage(
      engine,
      { file, format: args.format ?? 'qcow2', isNew, disk: old, backing: old },
      report,
    );
    if (!hasProtocol(file)) await report.checkRoom(engine.opener.host, file, 0);
  }
  return { 'x-dry-run': report.result() };
}

export async function drySnapshot(
  engine: Engine,
  args: CommandArguments<'blockdev-snapshot'>,
): Promise<DryRunAnswer> {
  const { graph } = engine;
  const report = new DryRunReport();
  await report.attempt(async () => {
    checkSnapshot(engine, args);
    const old = findDevice(graph, args.node);
    const overlay = findDevice(graph, args.overlay);
    report.say(
      `[${overlay.name}] takes what guests write from then on; [${old.name}] stays as it is, read-only.`,
    );
    await graph.rehearse((transaction) => {
      putOverlay(transaction, old, overlay);
      transaction.setReadOnly(old, true);
    });
  });
  return { 'x-dry-run': report.result() };
}
