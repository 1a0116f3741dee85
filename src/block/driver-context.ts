import { BlockError } from '../base/error.js';
import type { MemoryBudget } from '../base/memory-budget.js';
import type { Host } from '../host/host.js';
import type { PassedMemory } from '../host/passing.js';
import type { DirtyBitmap } from './dirty-bitmap.js';
import type { ChildIo, DriverContext, DriverEvent } from './driver.js';
import { findBitmap } from './find-node.js';
import { type FrozenChain, freezeChain } from './frozen-chain.js';
import { resolveBackingOf } from './full-filename.js';
import type { Graph } from './graph.js';
import type { NodeModes } from './modes.js';
import type { Node } from './node.js';
import type { ObjectRegistry } from './objects/object-registry.js';

/** What a node's driver may use. A chain has many: one with members of its own for all of this takes 3 KiB. */
export class NodeContext implements DriverContext {
  readonly forCheck: boolean;
  // Not hidden (#): drivers make contexts that inherit from this one.
  private readonly node: Node;
  private readonly graph: Graph;
  private readonly onWarning: (text: string) => void;

  /** `warn`: told of what is to be said as a warning of the program. */
  constructor(
    node: Node,
    graph: Graph,
    { forCheck = false, warn }: { forCheck: boolean | undefined; warn: (text: string) => void },
  ) {
    this.node = node;
    this.graph = graph;
    this.forCheck = forCheck;
    this.onWarning = warn;
    node.onCutOff = (filename) =>
      warn(`'${filename}' is cut off: what its image has behind the end of the file reads as zeroes`);
  }

  get onlyLook(): boolean {
    return this.node.onlyLook;
  }

  get host(): Host {
    return this.graph.host;
  }

  get objects(): ObjectRegistry {
    return this.graph.objects;
  }

  get tableMemory(): MemoryBudget {
    return this.graph.tableMemory;
  }

  get nodeName(): string {
    return this.node.name;
  }

  get modes(): NodeModes {
    return this.node.modes;
  }

  get filename(): string {
    return this.node.filename;
  }

  get readOnly(): boolean {
    return this.node.readOnly;
  }

  get mayWrite(): boolean {
    return this.node.isWritable;
  }

  get isActive(): boolean {
    return this.node.activity === 'active';
  }

  get memory(): PassedMemory | undefined {
    return this.graph.host.passing?.memories.get(this.node.name);
  }

  get loadsBitmaps(): boolean {
    return !this.onlyLook && !this.forCheck;
  }

  get dirtyBitmaps(): DirtyBitmap[] {
    return this.node.dirtyBitmaps;
  }

  child(role: string): ChildIo {
    return this.node.child(role);
  }

  hasChild(role: string): boolean {
    return this.node.children.has(role);
  }

  listChildren(option: string): readonly string[] {
    return [...this.node.children.keys()].filter((role) => role.startsWith(`${option}.`));
  }

  descriptorOf(text: string): number {
    return this.graph.descriptorOf(text);
  }

  nameOf(filename: string): string {
    return resolveBackingOf(this.node, filename);
  }

  freezeChain(name: string): FrozenChain {
    const bottom = this.graph.find(name);
    if (!bottom) throw new BlockError('not-found', `Bottom node '${name}' not found`);
    return freezeChain(this.node, bottom);
  }

  dirtyBitmap(node: string, name: string): DirtyBitmap {
    return findBitmap(this.graph, node, name);
  }

  report(event: DriverEvent): void {
    this.graph.onDriverEvent(this.node, event);
  }

  tell(line: string): void {
    this.graph.onDriverLine(line);
  }

  warn(text: string): void {
    this.onWarning(text);
  }
}
