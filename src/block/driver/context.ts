import type { MemoryBudget } from '../../base/memory-budget.js';
import type { Host } from '../../host/host.js';
import type { PassedMemory } from '../../host/passing.js';
import type { DirtyBitmap } from '../dirty-bitmap.js';
import type { FrozenChain } from '../frozen-chain.js';
import type { NodeModes } from '../modes.js';
import type { ObjectRegistry } from '../objects/object-registry.js';
import type { ChildIo } from './child-io.js';

/** What a driver may use of its node and surroundings. */
export interface DriverContext {
  readonly host: Host;
  /** What options name by an id: secrets, limits. */
  readonly objects: ObjectRegistry;
  /** Tables of images that are only read are kept in this, all of them together. */
  readonly tableMemory: MemoryBudget;
  readonly nodeName: string;
  /** For messages: the node's full name, as the graph stands. */
  readonly filename: string;
  readonly readOnly: boolean;
  readonly modes: NodeModes;
  /** Not read-only, and the image is ours (see block/activity); a change of either takes effect at its commit. */
  readonly mayWrite: boolean;
  /** Opened to be checked, whatever is wrong with it. */
  readonly forCheck: boolean;
  /** Only what the image says of itself is asked for. */
  readonly onlyLook: boolean;
  /** The image is ours, not another process's (see block/activity). */
  readonly isActive: boolean;
  /** Its content is to be used: the bitmaps that the image keeps are loaded. */
  readonly loadsBitmaps: boolean;
  /** What another process had in memory of the node, which is taken over from it (DriverInstance.memory). */
  readonly memory: PassedMemory | undefined;
  /** The node's bitmaps, oldest first; the driver adds those that the image keeps, and stores them, and any of its own. */
  readonly dirtyBitmaps: DirtyBitmap[];
  /** The child of that role; asserts that it is attached. */
  child(role: string): ChildIo;
  hasChild(role: string): boolean;
  /** The roles of those that an option lists (ChildRole.isList), as the graph stands. */
  listChildren(option: string): readonly string[];
  /** The descriptor that an option means. Errors: invalid, not-found, unsupported; in QEMU's words. */
  descriptorOf(text: string): number;
  /** A file that the image names, seen from where the image is. Errors: invalid where that is no folder. */
  nameOf(filename: string): string;
  /** The chain below as far as a node, by name, fixed until it is released. Errors: not-found, invalid. */
  freezeChain(bottom: string): FrozenChain;
  /** Of a node, by their names. Errors: not-found. */
  dirtyBitmap(node: string, name: string): DirtyBitmap;
  /** Something the monitor may turn into an event, such as a corrupt image. */
  report(event: DriverEvent): void;
  /** A line for people, where QEMU prints one on standard error. */
  tell(line: string): void;
  /** The same, as a warning of the program. */
  warn(text: string): void;
}

/** A file that an image says is a part of it. It is a plain file, whatever its name looks like. */
export interface NamedFile {
  /** It becomes the child of that role. */
  readonly role: string;
  /** As the image says it. */
  readonly filename: string;
  /** What it is to the image, for messages. */
  readonly what: string;
  /** A relative name is seen from where the program is, not from where the image is. */
  readonly isFromHere?: boolean;
}

export type DriverEvent =
  { name: 'corrupted'; message: string; offset?: number; sizeBytes?: number; fatal: boolean } | QuorumEvent;

/** Of several children that should say the same: one does not, or too few do. */
export type QuorumEvent =
  | {
      name: 'bad-child';
      role: string;
      operation: 'read' | 'write' | 'flush';
      error?: string;
      offset: number;
      lengthBytes: number;
    }
  | { name: 'no-quorum'; offset: number; lengthBytes: number };
