import { deferred, type Deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { ExportRegistry } from '../../attach/exports.js';
import { isSameDisk } from '../../attach/same-disk.js';
import type { DriverDescription } from '../../block/driver.js';
import { probedWarning } from '../../block/format-guard.js';
import { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import { tlsServerEnd } from '../../block/objects/tls-end.js';
import { type OpenContext, Opener } from '../../block/open.js';
import { DriverRegistry } from '../../block/registry.js';
import type { Host } from '../../host/host.js';
import { LostChanges } from '../../wire/nbd/lost-changes.js';
import { versionText } from '../../wire/qmp/version.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { loadSnapshot } from '../arguments/load-snapshot.js';
import { parseObject } from '../arguments/objects.js';
import { openAbove } from '../arguments/temporary-image.js';
import { PidFile } from '../run/pid-file.js';
import { applyTrace } from '../arguments/trace.js';
import { checkActivated, passedSocket } from './activation.js';
import { HELP, type NbdArguments, parseNbdArguments } from './arguments.js';
import { asCredentials } from './credentials.js';
import { forkServer, tellReady } from './background.js';
import { refuseKernelDevice } from './kernel-device.js';
import { printExports } from './list.js';

export interface NbdProgram {
  print: (text: string) => void;
  printError: (text: string) => void;
  host: Host;
  drivers: Iterable<DriverDescription>;
}

/** `livedisk nbd`, with qemu-nbd's command line. Answers the exit status. */
export async function nbdMain(words: readonly string[], program: NbdProgram): Promise<number> {
  try {
    const kernel = await refuseKernelDevice(words, program.host);
    if (kernel) throw kernel;
    const args = parseNbdArguments(words);
    if (args.asks === 'help' || args.asks === 'version') {
      program.print(args.asks === 'help' ? HELP : versionText('qemu-nbd'));
      return 0;
    }
    if (typeof args.asks === 'object') {
      program.print(args.asks.text);
      return 0;
    }
    if (!args.fork) await applyTraces(args, program);
    if (args.asks === 'list') return await printExports(args, program);
    const fd = passedSocket(process.env, process.pid);
    if (fd !== undefined) checkActivated(args.given);
    if (args.fork) return await forkServer(words, args.verbose, program.printError);
    await serve(fd === undefined ? args : { ...args, address: { type: 'fd', fd } }, program);
    return 0;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    program.printError(`qemu-nbd: ${error.message}\n`);
    if (error.hint !== undefined) program.printError(`${error.hint}\n`);
    return 1;
  }
}

async function applyTraces({ traces }: NbdArguments, { host, printError }: NbdProgram): Promise<void> {
  for (const trace of traces) await applyTrace(host, trace, (text) => printError(`qemu-nbd:${text}\n`));
}

/** Until the last client has left, or a signal comes. */
async function serve(args: NbdArguments, { host, drivers, printError }: NbdProgram): Promise<void> {
  const graph = new Graph(host);
  const opener = new Opener(graph, new DriverRegistry(drivers));
  graph.onDriverLine = (line) => printError(`${line}\n`);
  opener.onWarning = (text) => printError(`qemu-nbd: warning: ${text}\n`);
  opener.onProbed = (name, format, readOnly) => printError(probedWarning(name, format, readOnly));
  for (const text of args.objects) await graph.objects.add(parseObject(text));
  const exports = new ExportRegistry(graph, new LostChanges(isSameDisk), () => undefined);
  const ended = deferred();
  let pidFile: PidFile | undefined;
  const { tlsCreds } = args;
  if (tlsCreds !== undefined) asCredentials(() => tlsServerEnd(graph.objects, tlsCreds));
  const node = await open(args, opener);
  try {
    await listen(args, exports, node, ended, printError);
    if (args.pidFile !== undefined) pidFile = await writePidFile(host, args.pidFile);
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const)
      process.once(signal, () => ended.resolve());
    tellReady();
    // A listener that was passed keeps no process alive by itself.
    const keepAlive = setInterval(() => undefined, 2 ** 30);
    await ended.promise.finally(() => clearInterval(keepAlive));
  } finally {
    await exports.close();
    await graph.collect([node]);
    await pidFile?.remove();
  }
}

async function listen(
  args: NbdArguments,
  exports: ExportRegistry,
  node: Node,
  ended: Deferred<void>,
  printError: (text: string) => void,
): Promise<void> {
  if (!args.address) throw new BlockError('invalid', 'There is no socket to listen on');
  await exports.startServer(args.address, {
    maxConnections: args.mostClients,
    // Nobody is kept waiting by clients that take their time: qemu-nbd knows no limit.
    handshakeMaxSeconds: 0,
    ...(args.tlsCreds !== undefined && {
      tls: { credentials: args.tlsCreds, ...(args.tlsAuthz !== undefined && { authz: args.tlsAuthz }) },
    }),
    onRefused: (text) => printError(`qemu-nbd: ${text}\n`),
    onLeft: (left) => {
      if (left === 0 && !args.persistent) ended.resolve();
    },
  });
  await exports.add({
    id: 'qemu-nbd-export',
    node,
    name: args.exportName,
    writable: !args.readOnly,
    writethrough: args.cache.writethrough,
    ...(args.description !== undefined && { description: args.description }),
    // The last one that is given comes first, as in qemu-nbd.
    bitmaps: [...args.bitmaps].reverse(),
    allocationDepth: args.allocationDepth,
  });
}

async function writePidFile(host: Host, path: string): Promise<PidFile> {
  try {
    return await PidFile.create(host, path, process.pid);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const why = error.message.replace(/^cannot create PID file: (Could not (open|create) '[^']*': )?/, '');
    throw new BlockError(error.kind, `Could not create '${path}': ${why}`, { cause: error });
  }
}

/** What is exported: the image, or a temporary one above it, or a part of it. */
async function open(args: NbdArguments, opener: Opener): Promise<Node> {
  const node = await openDisk(args, opener);
  node.detectZeroes(args.detectZeroes);
  return node;
}

async function openDisk(args: NbdArguments, opener: Opener): Promise<Node> {
  const { discard, cache, snapshot, offset } = args;
  const context: OpenContext = { readOnly: args.readOnly, discard, cache: cache.options, aio: args.aio };
  const image = await (snapshot ? openTemporary(args, opener, context) : openBelow(args, opener, context));
  if (offset === undefined) return image;
  return opener.open({ driver: 'raw', file: image.name, offset }, context);
}

/** The image, or a snapshot inside it. */
async function openBelow(args: NbdArguments, opener: Opener, context: OpenContext): Promise<Node> {
  const image = await explained(args, () => openImage(args, opener, context));
  if (args.loadSnapshot) await loadSnapshot(image, args.loadSnapshot);
  return image;
}

async function explained({ filename }: NbdArguments, body: () => Promise<Node>): Promise<Node> {
  try {
    return await body();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const text = `Failed to blk_new_open '${filename}': ${error.message}`;
    throw new BlockError(error.kind, text, {
      cause: error,
      ...(error.hint !== undefined && { hint: error.hint }),
    });
  }
}

function openImage(args: NbdArguments, opener: Opener, context: OpenContext): Promise<Node> {
  const { filename, format, imageOpts } = args;
  if (imageOpts)
    return opener.openFlat(parseImageOpts(filename, { impliedKey: 'file', warn: opener.onWarning }), context);
  return opener.openImage(filename, format, context);
}

/** What clients write goes to a file that is gone with the program. */
async function openTemporary(args: NbdArguments, opener: Opener, context: OpenContext): Promise<Node> {
  const image = await openBelow(args, opener, { ...context, readOnly: true });
  return explained(args, () => openAbove(opener, image, context));
}
