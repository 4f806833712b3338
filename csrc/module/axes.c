/* axes.c: the tables of axial positions, of which a call has any number. */
#include "call.h"

static const struct {
    const char *dw, *shape, *size, *width;
} names[RF_MAX_AXES] = {
    {"dw0", "n1 d1", "n1", "d1"}, {"dw1", "n2 d2", "n2", "d2"}, {"dw2", "n3 d3", "n3", "d3"},
    {"dw3", "n4 d4", "n4", "d4"}, {"dw4", "n5 d5", "n5", "d5"}, {"dw5", "n6 d6", "n6", "d6"},
    {"dw6", "n7 d7", "n7", "d7"}, {"dw7", "n8 d8", "n8", "d8"},
};

static size_t take_axes(rf_call *c, rf_axis *axes, size_t after, int written) {
    if (c->failed) return 0;
    const size_t left = (size_t)(c->end - c->next), count = left > after ? left - after : 0;
    if (count == 0 || count > RF_MAX_AXES) {
        RF_FAIL(c, PyExc_TypeError, "%s takes 1 to %d tables, got %zu", c->op, RF_MAX_AXES, count);
        return 0;
    }
    size_t width = 0, positions = 1;
    for (size_t i = 0; i < count; i++) {
        rf_axis *a = &axes[i];
        *a = (rf_axis){0};
        if (written)
            a->dw = rf_inout(c, names[i].dw, names[i].shape);
        else
            a->w = rf_in(c, names[i].dw + 1, names[i].shape); // without the d
        a->size = rf_size(c, names[i].size);
        a->width = rf_size(c, names[i].width);
        width += a->width;
        positions = rf_product(positions, a->size);
    }
    rf_let(c, "c", width, "the tables");
    rf_check_ids(c, "position_ids", positions);
    return count;
}

size_t rf_in_axes(rf_call *c, rf_axis *axes, size_t after) {
    return take_axes(c, axes, after, 0);
}

size_t rf_inout_axes(rf_call *c, rf_axis *axes, size_t after) {
    return take_axes(c, axes, after, 1);
}
