import { BlockError } from '../../base/error.js';
import { objectOf, textOf } from '../../view/answers.js';
import { buildView } from '../../view/build.js';
import { readGraph, type NodeGraph } from '../../view/nodes.js';
import type { PlannedCommand } from '../../view/plan/types.js';
import { bracketed } from '../../view/words.js';
import { isPlainName } from './chain.js';
import { type DiskReversal, type DiskSwitch, mayBeWritten } from './revert.js';
import { JobWatch, lookAnswers, type PointServer } from './server.js';
import { isOwnNode } from './unneeded.js';

/** A guest in these states has nothing of the disk in its memory. */
const WITHOUT_GUEST: ReadonlySet<string> = new Set(['prelaunch', 'shutdown']);

/**
 * The users of one disk go over to a new image by plain QMP: a mirror that copies nothing (sync=none) takes them along when
 * it is completed. What somebody wrote meanwhile would be in the new image, so nobody may write: not who is there, nor who
 * came and went. The mirror counts what it copies, and copies nothing more once it waits to be finalized.
 */
export function qmpSwitch(server: PointServer): DiskSwitch {
  return {
    check: async (reversals) => {
      if (reversals.length > 1)
        throw new BlockError('unsupported', 'plain QMP cannot take several disks back at one moment', {
          hint: 'Take one back after the other: by its image on the page, or with --disk NODE.',
        });
      for (const reversal of reversals) await checkOne(server, reversal);
    },
    run: async (reversals) => {
      for (const reversal of reversals) await run(server, reversal);
    },
    commands: (reversals) => reversals.flatMap(reversalCommands),
  };
}

/** Errors: busy, with who may write; unsupported. */
async function checkOne(server: PointServer, reversal: DiskReversal): Promise<void> {
  const { image, top } = reversal;
  if (image.virtualBytes !== top.virtualBytes)
    throw new BlockError('unsupported', `the disk has another length than ${bracketed(image)}`, {
      hint: 'Plain QMP cannot take its users there: end the program, and go back on the image at rest.',
    });
  if (!isPlainName(image.filename))
    throw new BlockError('unsupported', `${bracketed(image)} is no image that a file's name alone opens`);
  await checkWriters(server, reversal);
}

/** Errors: busy. */
async function checkWriters(server: PointServer, { top }: DiskReversal): Promise<void> {
  const answers = await lookAnswers(server);
  const graph = readGraph(answers);
  const above = nodesAbove(graph, top.id);
  const backends = graph.parents.filter(
    ({ type, mayWrite, child }) => type === 'block-backend' && mayWrite && above.has(child),
  );
  // A storage daemon has no such state.
  const runState = textOf(objectOf(answers['query-status'])['status']);
  const { users } = buildView(answers);
  const writers = backends.flatMap(({ name, child }) => {
    const device = users.find(
      ({ qdev, deviceName, kind }) => kind === 'device' && name !== '' && [qdev, deviceName].includes(name),
    );
    if (device && WITHOUT_GUEST.has(runState ?? '')) return [];
    if (device) return [`the guest's device '${device.label}' (the guest is ${runState ?? 'there'})`];
    const exports = users.filter(({ kind, imageId }) => kind === 'export' && imageId === child);
    return exports.length > 0 ? exports.map(({ label }) => `export '${label}'`) : [`a user of '${child}'`];
  });
  if (writers.length > 0) throw mayBeWritten(top, [...new Set(writers)].join(', '));
}

function nodesAbove({ nodes }: NodeGraph, id: string): Set<string> {
  const above = new Set([id]);
  for (const one of above)
    for (const { name, children } of nodes.values())
      if (children.some((child) => child.id === one)) above.add(name);
  return above;
}

/** In their order; each job is waited for. */
function reversalCommands({ top, filters, image, node, file, path, ends }: DiskReversal): PlannedCommand[] {
  const command = (execute: string, args: PlannedCommand['arguments']): PlannedCommand => ({
    execute,
    arguments: args,
  });
  const [storage, job] = [`${node.slice(0, 29)}-f`, `back-${node}`];
  const create = (id: string, options: PlannedCommand['arguments']): PlannedCommand[] => [
    command('blockdev-create', { 'job-id': id, options }),
    command('job-dismiss', { id }),
  ];
  return [
    ...create(`${job}-file`, { driver: 'file', filename: file, size: 0 }),
    command('blockdev-add', { driver: 'file', 'node-name': storage, filename: file }),
    ...create(`${job}-image`, {
      ...{ driver: 'qcow2', file: storage, size: top.virtualBytes },
      ...{ 'backing-file': path, 'backing-fmt': image.driver },
    }),
    command('blockdev-del', { 'node-name': storage }),
    command('blockdev-add', {
      ...{ driver: 'qcow2', 'node-name': node, file: { driver: 'file', filename: file } },
      backing: image.id,
    }),
    command('blockdev-mirror', {
      ...{ 'job-id': job, device: filters.at(-1)?.id ?? top.id, target: node, sync: 'none' },
      ...(filters.length > 0 && { replaces: top.id }),
      ...{ 'auto-finalize': false, 'auto-dismiss': false },
    }),
    { ...command('job-complete', { id: job }), afterReady: true },
    command('job-finalize', { id: job }),
    command('job-dismiss', { id: job }),
    // Who made it with a name has it open still; an image that a snapshot made goes by itself.
    ...[...ends]
      .reverse()
      .filter((id) => id === top.id || isOwnNode(id))
      .map((id) => command('blockdev-del', { 'node-name': id })),
  ];
}

/** Where the mirror is before a command. */
const WAITED_FOR: Readonly<Record<string, string | undefined>> = {
  'job-complete': 'ready',
  'job-finalize': 'pending',
};

/** After an error the disk is as it was, without the new node. */
async function run(server: PointServer, reversal: DiskReversal): Promise<void> {
  using watch = new JobWatch(server);
  const begun: PlannedCommand[] = [];
  try {
    for (const command of reversalCommands(reversal)) {
      const { execute, arguments: args } = command;
      if (execute === 'job-dismiss') {
        await watch.finish(textOf(args['id']) ?? '');
        continue;
      }
      const status = WAITED_FOR[execute];
      if (status !== undefined) {
        // Nobody has come meanwhile, nor come and gone.
        const { workBytes } = await watch.reach(textOf(args['id']) ?? '', status);
        await checkWriters(server, reversal);
        if (workBytes > 0)
          throw new BlockError(
            'busy',
            `the disk '${reversal.top.label}' was written to while it was to go back`,
          );
      }
      const isLeft = reversal.ends.some((id) => id === args['node-name']);
      const answer = server.execute(execute, args);
      await (isLeft ? answer.catch(() => undefined) : answer);
      begun.push(command);
    }
  } catch (error) {
    await undo(server, watch, begun).catch(() => undefined);
    throw error;
  }
}

async function undo(server: PointServer, watch: JobWatch, begun: readonly PlannedCommand[]): Promise<void> {
  for (const { execute, arguments: args } of [...begun].reverse()) {
    const id = textOf(args['job-id']);
    if (execute === 'blockdev-mirror' && id !== undefined && (await watch.find(id))) {
      await server.execute('job-cancel', { id }).catch(() => undefined);
      await watch.until(id, ['concluded']);
      await server.execute('job-dismiss', { id });
    }
    if (execute === 'blockdev-add')
      await server.execute('blockdev-del', { 'node-name': args['node-name'] ?? '' }).catch(() => undefined);
  }
}
