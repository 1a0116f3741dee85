import { BlockError, errnoError, errnoOf } from '../base/error.js';
import { changeBackingReference, referenceTo } from '../block/backing-reference.js';
import { assertOverlayFits } from '../block/chain-limit.js';
import { createImage, formattingText, newImage } from '../block/create.js';
import { given } from '../base/given.js';
import type { CreateOptions, Json, NodeOptions } from '../block/driver.js';
import type { Graph } from '../block/graph.js';
import { reopen } from '../block/reopen.js';
import { Node } from '../block/node.js';
import { Permission } from '../block/permissions.js';
import type { BlockBackend } from '../block/backend.js';
import { Waiting } from '../wire/qmp/registry.js';
import { canAmend, keySlotsOf } from '../schema/amend-options.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';
import { checkNotBlocked, findNode, findRoot } from '../block/find-node.js';
import { WriteThreshold } from '../block/write-threshold.js';
import { withBackend } from '../block/with-backend.js';
import { planCreate } from '../jobs/plans/create.js';

type Blockdev = Parts<
  'command' | 'graph' | 'opener' | 'jobs' | 'openNode' | 'takeImages' | 'leaveImages' | 'emit'
>;

export function registerBlockdev(engine: Blockdev): void {
  const { graph } = engine;
  engine.command(
    'blockdev-add',
    async (options) => void (await engine.openNode(options as { [key: string]: Json })),
  );
  engine.command('blockdev-del', ({ 'node-name': name }) => deleteNode(engine, name));
  engine.command('blockdev-create', (args) => create(engine, args));
  engine.command('x-blockdev-amend', (args) => amend(engine, args));
  engine.command('blockdev-reopen', ({ options }) => {
    const { gate } = engine.opener.drivers;
    return reopen(
      graph,
      options.map((node) => gate.planOf(node as NodeOptions)),
    );
  });
  engine.command('blockdev-set-active', (args) => setActive(engine, args));
  engine.command('block-set-write-threshold', ({ 'node-name': name, 'write-threshold': offset }) =>
    setWriteThreshold(engine, name, offset),
  );
  engine.command('block_resize', (args) => resize(graph, args));
  engine.command('change-backing-file', (args) => changeBackingFile(graph, args));
}

function amend({ graph, jobs }: Blockdev, args: CommandArguments<'x-blockdev-amend'>): void {
  const { 'job-id': id, 'node-name': name, options, force: isForced = false } = args;
  const node = findNode(graph, undefined, name);
  const { driver } = node;
  if (driver.name !== options.driver)
    throw new BlockError('invalid', "x-blockdev-amend doesn't support changing the block driver");
  if (!canAmend(driver.name)) throw new BlockError('unsupported', 'Driver does not support x-blockdev-amend');
  const amendment = keySlotsOf(options);
  const work = async (): Promise<void> => {
    if (!amendment) return;
    await graph.drained([node], async () => {
      if (!node.isWritable) throw new BlockError('permission', 'Block node is read-only');
      await node.instance.amend?.({ keySlots: { amendment, isForced } });
    });
  };
  jobs.startStep('amend', id, work, node);
}

/** 0: none. */
export function setWriteThreshold(engine: Parts<'graph' | 'emit'>, name: string, offset: number): void {
  const node = engine.graph.find(name);
  if (!node) throw new BlockError('invalid', `Device '${name}' not found`);
  const tell = (byBytes: number): void =>
    engine.emit('BLOCK_WRITE_THRESHOLD', {
      'node-name': name,
      'amount-exceeded': byBytes,
      'write-threshold': offset,
    });
  node.writeThreshold = offset === 0 ? undefined : new WriteThreshold(offset, tell);
}

async function setActive(engine: Blockdev, args: CommandArguments<'blockdev-set-active'>): Promise<void> {
  const { graph } = engine;
  const { 'node-name': name, active } = args;
  const nodes = name === undefined ? graph.listed() : [graph.node(name)];
  if (active) return engine.takeImages(nodes);
  try {
    await engine.leaveImages(nodes);
  } catch (error) {
    if (!(error instanceof BlockError) || error.errno === undefined) throw error;
    throw errnoError(error.errno, `Failed to inactivate ${name === undefined ? 'all nodes' : 'node'}`, {
      cause: error,
    });
  }
}

function deleteNode({ graph, jobs }: Blockdev, name: string): Waiting {
  const node = graph.node(name);
  const hasUser = [...node.parents].some(({ parent }) => !(parent instanceof Node) && parent.isUser);
  if (hasUser) throw new BlockError('busy', `Node ${name} is in use`);
  checkNotBlocked(node);
  if (!node.monitorOwned) throw new BlockError('busy', `Node ${name} is not owned by the monitor`);
  if (node.parents.size > 0 || jobs.list().some(({ heldNode }) => heldNode === node))
    throw new BlockError('busy', `Block device ${name} is in use`);
  node.monitorOwned = false;
  // Its last flush may be slow. When it fails the node is gone all the same, which is what was asked.
  return new Waiting(graph.release([node]));
}

async function resize(graph: Graph, args: CommandArguments<'block_resize'>): Promise<void> {
  const node = findNode(graph, args.device, args['node-name']);
  if (args.size < 0) throw new BlockError('invalid', "Parameter 'size' expects a >0 size");
  const isBacking = [...node.parents].some(({ role }) => role === 'backing');
  if (node.isBlocked || isBacking)
    throw new BlockError('busy', `Device '${args.device ?? '(null)'}' is in use`);
  const owner = {};
  const change = async (backend: BlockBackend): Promise<void> => {
    if (node.readOnly) throw new BlockError('permission', 'Image is read-only');
    await graph.drained([node], () => backend.truncate(args.size), owner);
  };
  await withBackend(graph, node, Permission.resize, change, owner);
}

async function changeBackingFile(graph: Graph, args: CommandArguments<'change-backing-file'>): Promise<void> {
  const top = findRoot(graph, args.device);
  const image = findNode(graph, undefined, args['image-node-name']);
  if (!image.below) {
    const text = 'not allowing backing file change on an image without a backing file';
    throw new BlockError('invalid', text);
  }
  if (image !== top && !top.isAbove(image))
    throw new BlockError('invalid', `'${args.device}' and image file are not in the same chain`);
  const refusal = `Could not change backing file to '${args['backing-file']}'`;
  if (!image.instance.changeBacking) throw new BlockError('unsupported', refusal);
  const format = image.backingNode()?.driver.name;
  await graph.drained([image], async () => {
    try {
      await changeBackingReference(graph, image, { filename: args['backing-file'], format });
    } catch (error) {
      // It could not be made writable: the header was not touched.
      if (error instanceof BlockError && error.kind === 'permission') throw error;
      throw errnoError(errnoOf(error), refusal, { cause: error });
    }
  });
}

async function create(engine: Parts<'jobs'>, args: CommandArguments<'blockdev-create'>): Promise<void> {
  await engine.jobs.start(planCreate(args));
}

/**
 * Makes an image for a snapshot, mirror or backup, and prints what QEMU prints. Answers how queries name its backing file.
 * `disk`: of this one it may not be a file. Errors: "Could not create ...".
 */
export async function createOverlayFile(
  engine: Parts<'opener' | 'print'>,
  filename: string,
  format: string,
  sizeBytes: number,
  backing: Node | undefined,
  disk = backing,
): Promise<string | undefined> {
  if (backing) assertOverlayFits(backing);
  const reference = backing && referenceTo(backing, filename);
  const options = {
    sizeBytes,
    ...given({ backingFile: reference?.filename, backingFormat: reference?.format }),
  };
  const driver = engine.opener.drivers.find(format);
  if (!driver) throw new BlockError('invalid', `Unknown file format '${format}'`);
  const image = newImage(driver, options);
  driver.checkNew?.(image);
  if (disk) await assertNotOneOf(engine, filename, disk, backing);
  engine.print(`Formatting '${filename}', ${formattingText(driver, sizeBytes, backingTexts(options))}`);
  try {
    await createImage(engine.opener, filename, format, options);
    return reference?.shown;
  } catch (error) {
    if (!(error instanceof BlockError) || error.errno === undefined) throw error;
    const text = error.message.replace(/^Could not (open|create) '[^']*': /, '');
    throw new BlockError(error.kind, `Could not create '${filename}': ${text}`, { cause: error });
  }
}

/** Of images that are opened without locks, nothing else keeps a new file from taking the place. Errors: invalid, busy. */
export async function assertNotOneOf(
  { opener }: Parts<'opener'>,
  filename: string,
  disk: Node,
  backing: Node | undefined,
): Promise<void> {
  const { files } = opener.host;
  const there = await files.stat(filename).catch(() => undefined);
  if (!there) return;
  for (const node of disk.chain()) {
    const layer = await files.stat(node.storage.filename).catch(() => undefined);
    if (layer?.identity !== there.identity) continue;
    if (node === backing || backing?.isAbove(node) === true)
      throw new BlockError(
        'invalid',
        'Error: Trying to create an image with the same filename as the backing file',
      );
    // As the locks would tell it.
    throw new BlockError('busy', `Could not create '${filename}': Failed to get "write" lock`, {
      hint: `Is another process using the image [${filename}]?`,
    });
  }
}

function backingTexts({ backingFile, backingFormat }: CreateOptions): Map<string, string> {
  const texts = { backing_file: backingFile, backing_fmt: backingFormat };
  return new Map(Object.entries(given(texts)));
}
