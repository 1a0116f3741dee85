import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import type { CommonArguments } from '../jobs/arguments.js';
import type { ErrorPolicy } from '../jobs/error-policy.js';
import type { CommandArguments } from '../schema/commands.js';
import type { EngineParts as Engine } from './parts.js';
import { findBackingImage, findDevice, findNode, findRoot } from './find-node.js';

type StreamRequest = CommandArguments<'block-stream'>;
type CommitRequest = CommandArguments<'block-commit'>;

export function registerStreamAndCommit(engine: Engine): void {
  engine.command('block-stream', (args) => stream(engine, args));
  engine.command('block-commit', (args) => commit(engine, args));
}

/** The arguments that all block jobs share. */
export function commonArguments(args: {
  'job-id'?: string;
  speed?: number;
  'auto-finalize'?: boolean;
  'auto-dismiss'?: boolean;
  'filter-node-name'?: string;
  'on-error'?: ErrorPolicy;
  'on-source-error'?: ErrorPolicy;
  'on-target-error'?: ErrorPolicy;
}): CommonArguments {
  return given({
    jobId: args['job-id'] ?? '',
    speed: args.speed,
    autoFinalize: args['auto-finalize'],
    autoDismiss: args['auto-dismiss'],
    filterNodeName: args['filter-node-name'],
    onReadError: args['on-error'] ?? args['on-source-error'],
    onWriteError: args['on-error'] ?? args['on-target-error'],
  });
}

function refuseBoth(args: object, one: string, other: string, text: string): void {
  if (one in args && other in args) throw new BlockError('invalid', text);
}

async function stream(engine: Engine, args: StreamRequest): Promise<void> {
  for (const [one, other] of [
    ['base', 'base-node'],
    ['base', 'bottom'],
    ['bottom', 'base-node'],
  ] as const)
    refuseBoth(args, one, other, `'${one}' and '${other}' cannot be specified at the same time`);
  const { graph } = engine;
  const node = findDevice(graph, args.device);
  const base = streamBase(graph, node, args);
  const bottom = args.bottom === undefined ? undefined : streamBottom(graph, node, args.bottom);
  const rest = given({ base, bottom, backingFile: args['backing-file'] });
  await engine.jobs.startStream({ ...commonArguments(args), node, ...rest });
}

function streamBase(graph: Graph, node: Node, args: StreamRequest): Node | undefined {
  if (args.base !== undefined) {
    const found = findBackingImage(node, args.base);
    if (!found) throw new BlockError('not-found', `Can't find '${args.base}' in the backing chain`);
    return found;
  }
  const name = args['base-node'];
  if (name === undefined) return undefined;
  const found = findNode(graph, undefined, name);
  if (!node.isAbove(found))
    throw new BlockError('invalid', `Node '${name}' is not a backing image of '${args.device}'`);
  return found;
}

function streamBottom(graph: Graph, node: Node, name: string): Node {
  const found = findNode(graph, undefined, name);
  if (found.isFilter)
    throw new BlockError('invalid', `Node '${name}' is a filter, use a non-filter node as 'bottom'`);
  if (found !== node && !node.isAbove(found))
    throw new BlockError('invalid', `Node '${name}' is not in a chain starting from '${node.name}'`);
  return found;
}

async function commit(engine: Engine, args: CommitRequest): Promise<void> {
  const { graph } = engine;
  if (!graph.nodes.has(args.device))
    throw new BlockError('device-not-found', `Device '${args.device}' not found`);
  const device = findRoot(graph, args.device);
  const top = commitTop(graph, device, args);
  const base = commitBase(graph, top, args);
  const rest = given({ backingFile: args['backing-file'] });
  await engine.jobs.startCommit({ ...commonArguments(args), device, top, base, ...rest });
}

function commitTop(graph: Graph, device: Node, args: CommitRequest): Node {
  refuseBoth(args, 'top', 'top-node', "'top-node' and 'top' are mutually exclusive");
  const name = args['top-node'];
  if (name !== undefined) {
    const node = findNode(graph, undefined, name);
    if (node !== device && !device.isAbove(node))
      throw new BlockError('invalid', `'${name}' is not in this backing file chain`);
    return node;
  }
  if (args.top === undefined || args.top === device.filename) return device;
  const found = findBackingImage(device, args.top);
  if (!found) throw new BlockError('not-found', `Top image file ${args.top} not found`);
  return found;
}

function commitBase(graph: Graph, top: Node, args: CommitRequest): Node {
  refuseBoth(args, 'base', 'base-node', "'base-node' and 'base' are mutually exclusive");
  const name = args['base-node'];
  if (name !== undefined) {
    const node = findNode(graph, undefined, name);
    if (node !== top && !top.isAbove(node))
      throw new BlockError('invalid', `'${name}' is not in this backing file chain`);
    return node;
  }
  if (args.base !== undefined) {
    const found = findBackingImage(top, args.base);
    if (!found) throw new BlockError('not-found', `Can't find '${args.base}' in the backing chain`);
    return found;
  }
  let base = top.skipFilters();
  for (let below = base.backingNode(); below; below = below.backingNode()) base = below;
  return base;
}
