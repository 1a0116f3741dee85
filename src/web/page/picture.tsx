import { type ComponentChild, h } from 'preact';
import { useLayoutEffect, useRef } from 'preact/hooks';
import type { View } from '../../view/model.js';
import type { Shape } from '../../view/shape.js';
import { drawPicture } from '../../view/svg.js';
import { printable } from '../../view/words.js';

/** The same shapes that a file of `livedisk show --svg` has, as elements; images can be chosen where `onChoose` is. */
export function Picture({
  view,
  chosen,
  onChoose,
  label = 'picture of the chains',
}: {
  view: View;
  label?: string;
  chosen?: string | undefined;
  onChoose?: (id: string) => void;
}) {
  const holder = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);
  const end = useRef(0);
  const picture = drawPicture(view, { hasPace: onChoose !== undefined });
  // The guest is on the right: who looks there goes on looking there when the chain grows.
  useLayoutEffect(() => {
    const box = holder.current;
    if (!box) return;
    end.current = endOf(box);
    if (isAtEnd.current) box.scrollLeft = end.current;
  }, [picture.attributes['width']]);
  const onScroll = ({ currentTarget: box }: { currentTarget: HTMLDivElement }): void =>
    void (isAtEnd.current = box.scrollLeft >= end.current - 2);
  return (
    <div ref={holder} class="picture" onScroll={onScroll} tabIndex={0} role="region" aria-label={label}>
      {toElement(picture, { chosen, onChoose })}
    </div>
  );
}

/** As far right as shows the last image from its left edge on: on a phone its users have no room beside it. */
function endOf(box: HTMLElement): number {
  const { left } = box.getBoundingClientRect();
  const lefts = [...box.querySelectorAll('[data-image]')].map((image) => image.getBoundingClientRect().left);
  const last = Math.max(...lefts) - left + box.scrollLeft;
  const most = box.scrollWidth - box.clientWidth;
  return lefts.length === 0 ? most : Math.min(most, Math.max(0, last - MARGIN));
}

const MARGIN = 12;

interface Choice {
  chosen: string | undefined;
  onChoose: ((id: string) => void) | undefined;
}

function toElement(shape: Shape | string, choice: Choice): ComponentChild {
  if (typeof shape === 'string') return printable(shape);
  const { tag, attributes, children } = shape;
  const id = attributes['data-image'];
  const more = typeof id === 'string' ? chooser(shape, id, choice) : {};
  // A tooltip would be the button's name, in place of what is to be seen in it.
  const shown =
    'role' in more
      ? children.filter((child) => typeof child === 'string' || child.tag !== 'title')
      : children;
  return h(tag, { ...attributes, ...more }, ...shown.map((child) => toElement(child, choice)));
}

function chooser(shape: Shape, id: string, { chosen, onChoose }: Choice): Record<string, unknown> {
  if (!onChoose) return {};
  const classes = String(shape.attributes['class']);
  return {
    class: id === chosen ? `${classes} chosen` : classes,
    role: 'button',
    tabindex: 0,
    'aria-pressed': id === chosen ? 'true' : 'false',
    onClick: () => onChoose(id),
    onKeyDown: (event: KeyboardEvent) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      onChoose(id);
    },
  };
}
