import { BlockError } from '../base/error.js';
import type { ChildIo, DriverContext } from './driver.js';
import { findBitmap } from './find-node.js';
import { freezeChain } from './frozen-chain.js';
import { resolveBackingOf } from './full-filename.js';
import type { Graph } from './graph.js';
import type { Node } from './node.js';

/** What a node's driver may use. `warn`: told of what is to be said as a warning of the program. */
export function driverContext(
  node: Node,
  graph: Graph,
  { forCheck = false, warn }: { forCheck: boolean | undefined; warn: (text: string) => void },
): DriverContext {
  return {
    forCheck,
    onlyLook: node.onlyLook,
    host: graph.host,
    objects: graph.objects,
    tableMemory: graph.tableMemory,
    nodeName: node.name,
    get modes() {
      return node.modes;
    },
    get filename() {
      return node.filename;
    },
    get readOnly() {
      return node.readOnly;
    },
    get mayWrite() {
      return node.isWritable;
    },
    get isActive() {
      return node.activity === 'active';
    },
    loadsBitmaps: !node.onlyLook && !forCheck,
    dirtyBitmaps: node.dirtyBitmaps,
    child: (role): ChildIo => node.child(role),
    hasChild: (role) => node.children.has(role),
    listChildren: (option) => [...node.children.keys()].filter((role) => role.startsWith(`${option}.`)),
    nameOf: (filename) => resolveBackingOf(node, filename),
    freezeChain: (name) => {
      const bottom = graph.nodes.get(name);
      if (!bottom) throw new BlockError('not-found', `Bottom node '${name}' not found`);
      return freezeChain(node, bottom);
    },
    dirtyBitmap: (name, bitmap) => findBitmap(graph, name, bitmap),
    report: (event) => graph.onDriverEvent(node, event),
    tell: (line) => graph.onDriverLine(line),
    warn,
  };
}
