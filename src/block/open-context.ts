import type { FILE_OPTIONS, SettingsOf } from '../schema/blockdev-options.js';
import { NodeNames } from './full-filename.js';
import type { CacheSettings } from './driver.js';
import type { DiscardMode } from './modes.js';
import type { Node } from './node.js';

export type FileAio = SettingsOf<(typeof FILE_OPTIONS)['members']>['aio'];

/** How an image is opened beyond its own options; inherited by its children. */
export interface OpenContext {
  readOnly: boolean;
  /** -incoming: no locks, no writes until activated. */
  inactive?: boolean;
  /** Whatever others do with the files is fine (-U): for looking at images in use. */
  forceShare?: boolean;
  /** What becomes of discards where a node's options do not say; default: they are ignored. */
  discard?: DiscardMode;
  /** Where the options do not say. */
  cache?: CacheSettings;
  /** How files are read and written, where the options do not say. */
  aio?: FileAio;
  /** The node alone: what it says of a backing file is not followed. */
  noBacking?: boolean;
  /** Only what the image says of itself is looked at, not what it holds: that need not be consistent. */
  onlyLook?: boolean;
  /** Nesting so far of implicitly opened files. */
  depth?: number;
  /** Also with onlyLook: files that images name as parts of them are opened. */
  opensNamedFiles?: boolean;
  /** The image is to be checked, whatever is wrong with it. */
  forCheck?: boolean;
  /** The image above in the chain that is being opened: a cycle is refused. */
  overlay?: Overlay;
  /** Of what was opened below so far. */
  names?: NodeNames;
  monitorOwned?: boolean;
  implicit?: boolean;
  /** Nobody said the format of this image: of a raw one the first sector is guarded. */
  guessed?: boolean;
  /** Its file, which was opened to tell the format. */
  openedFile?: Node | undefined;
}

/** An image of a chain that is being opened, from the top. */
export interface Overlay {
  filename: string;
  above: Overlay | undefined;
  /** This one, and all above it. */
  layers: number;
}

/** What those that are opened below get of it. */
export function inheritable(context: OpenContext): OpenContext {
  const {
    monitorOwned: _owned,
    implicit: _implicit,
    guessed: _guessed,
    noBacking: _alone,
    forCheck: _checked,
    openedFile: _file,
    ...rest
  } = context;
  return rest;
}

export function overlayOf(node: Node, above: Overlay | undefined): Overlay {
  const filename = new NodeNames({ ignoresBacking: true }).of(node);
  return { filename, above, layers: 1 + (above?.layers ?? 0) };
}

export function isBeingOpened(filename: string, lowest: Overlay): boolean {
  for (let at: Overlay | undefined = lowest; at; at = at.above) if (at.filename === filename) return true;
  return false;
}
