import type { Host } from '../../host/host.js';
import type { DriverOptions } from '../../schema/blockdev-options.js';
import type { ToolOption } from '../../schema/create-options.js';
import type { FlatOptions } from '../../schema/flat.js';
import type { Members } from '../../schema/types.js';
import type { PermissionSet } from './changes.js';
import type { ChildIo } from './child-io.js';
import type { DriverContext, NamedFile } from './context.js';
import type { DriverInstance } from './instance.js';
import type { MeasuredContent, Measurement, NewFileTraits, NewImage, NewImageContext } from './new-image.js';
import type { GivenOptions, NodeOptions, Settings } from './options.js';

/** What the composition root registers. */
export interface DriverDescription<O extends DriverOptions = DriverOptions, C extends Members = Members> {
  readonly name: string;
  readonly kind: 'protocol' | 'format' | 'filter';
  /** Its own options and children, and whether it has backing files (schema/blockdev-options.ts). */
  readonly options: O;
  /** Its own options that may change while it is open. */
  readonly mutableOptions?: readonly string[];
  /** Its size is its child's: filters' is anyway. */
  readonly followsChildSize?: boolean;
  /** Its children are to hold what it shows: one that does not may be replaced by a copy of it. */
  readonly holdsCopies?: boolean;
  /** The format of images that show no other. */
  readonly isFallback?: boolean;
  /** Formats: an image that is opened for writing is not written before somebody changes it. */
  readonly opensWithoutWriting?: boolean;
  /** Takes writes that are to be compressed, or passes them on. */
  readonly compresses?: boolean;
  /** Protocols: names are paths, so an image has a folder in which relative names of backing files begin. */
  readonly hasFolders?: boolean;
  /** Protocols: why a node of these options has none all the same. */
  folderRefusal?(options: GivenOptions): string | undefined;
  /** What messages call it, where that is not its name. */
  readonly title?: string;
  /** Filters: what is read is read of the child, and nothing else comes of it. */
  readonly readsAsChild?: boolean;
  /** Filters of jobs: they cannot be opened, and have the names of what they show. */
  readonly isNamedAsChild?: boolean;
  /** Filters: named itself, and not as its child; of jobs where the user has given it a name. */
  readonly isNamedWhole?: boolean;
  /** Filters of jobs: what QEMU calls the child that it shows. */
  readonly shownChildRole?: string;
  /** Filters of jobs: no other job may rely on the link to it. */
  readonly isNeverFrozen?: boolean;
  /** Filters of jobs: a layer in queries even where the user gave it no name. */
  readonly isAlwaysShown?: boolean;
  /**
   * Files that the image names as parts of it, besides the children that are attached already; opened before the image is,
   * unless it is only looked at (OpenContext.onlyLook).
   */
  namedFiles?(context: DriverContext, settings: Settings<O>): Promise<readonly NamedFile[]>;
  /** What is wrong with its options and the roles of its children, before these are opened. */
  checkOptions?(settings: Settings<O>, roles: readonly string[]): void;
  /** Opens; its children are attached already (`backing` comes later). */
  open(context: DriverContext, settings: Settings<O>): Promise<DriverInstance>;
  /** What it asks of a child, where that is not what its kind asks (block/child-permissions); undefined: default. */
  childPermissions?(
    role: string,
    users: PermissionSet,
    readOnly: boolean,
    settings: Settings<O>,
    hasUsers: boolean,
  ): PermissionSet | undefined;
  /** How sure it is that the first bytes, of a file of that name, are of its format: 0 no, 100 certain. */
  probe?(header: Buffer, filename: string): number;
  /** What may be said of a new image besides its size and backing file (schema/create-options.ts). */
  readonly createOptions?: C;
  /** Formats: the image tool's -o options and, among them, size and backing file, in the order of its messages. */
  readonly toolOptions?: readonly ToolOption[];
  /** Formats: the options of `img amend` that are not among those of new images. */
  readonly amendOptions?: readonly string[];
  /** Formats: what is wrong with the options together, before anything is made. */
  checkNew?(image: NewImage<C>): void;
  /** Formats: how large the file of such an image is. */
  measure?(image: NewImage<C>, content: MeasuredContent): Promise<Measurement>;
  /**
   * Formats: writes an empty image into a file child that is already open; durable on return. `context`: what
   * it may be made with.
   */
  create?(file: ChildIo, image: NewImage<C>, host: Host, context?: NewImageContext): Promise<void>;
  /** Formats: why a new image cannot be of a size beyond all bounds. */
  readonly tooLargeText?: string;
  /** Formats: the creation option that names a file for the guest's data. */
  readonly dataFileOption?: string;
  /** Protocols: there is something without us, which takes a new image as it is. */
  readonly takesImages?: boolean;
  /** Protocols: createFile makes a file of this machine, as its traits say. */
  readonly takesFileTraits?: boolean;
  /** Protocols: makes the file; replaces what is there. */
  createFile?(host: Host, filename: string, sizeBytes: number, traits?: NewFileTraits): Promise<void>;
  /** The same, at a place that options say. */
  createAt?(host: Host, place: NodeOptions, sizeBytes: number): Promise<void>;
  /**
   * Protocols: the plain filename that means these options, as given; undefined: none does. `image`: that of the
   * child, for a protocol over another; `childName`: of one of several.
   */
  filename?(
    options: GivenOptions,
    image?: string,
    childName?: (role: string) => string | undefined,
  ): string | undefined;
  /** Options that decide what a node shows: all that is to be said of it besides its children. */
  readonly identityOptions?: readonly string[];
  /** What among the options is a secret itself, in words, and how it can be given by the id of one instead. */
  secretIn?(options: GivenOptions): { what: string; instead: string } | undefined;
  /**
   * Protocols: whether a plain filename is theirs ("nbd:", "nbd://"), and the options it stands for. A child of which
   * they have nothing but a `filename` is the one of that name.
   */
  parseFilename?(filename: string): NodeOptions | undefined;
  /** Replaces older spellings of options, which only flat ones may have. Errors: invalid, in QEMU's words. */
  modernise?(options: FlatOptions): void;
  /** Protocols with the options of a file: whether what lies at a path is theirs. */
  claims?(host: Host, path: string): Promise<boolean>;
}
