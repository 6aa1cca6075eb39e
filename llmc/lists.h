/*
Lists of numbers that a flag holds as text: items separated by commas, the numbers of an item by
colons, as in "5.667:0.4385,49:0.5615".
*/
#ifndef CM_LISTS_H
#define CM_LISTS_H

#include "flags.h"

/* The most items of a list, and the most numbers of an item. */
enum { LIST_ITEMS = 32, LIST_NUMBERS = 3 };

typedef struct {
    int n;
    int numbers[LIST_ITEMS]; /* of each item */
    double item[LIST_ITEMS][LIST_NUMBERS];
} NumberList;

/* Reads the list of a flag: at most `items` items of `least` to `most` numbers each. An empty text
   has no items. Returns 0, or -1 with a sentence that names the flag; `form` shows an item, as in
   "STEP:MULTIPLIER". */
static inline int list_parse(NumberList *list, const char *flag, const char *text, int items,
                             int least, int most, const char *form, char *err) {
    list->n = 0;
    while (*text) {
        size_t length = strcspn(text, ",");
        if (list->n == min_int(items, LIST_ITEMS))
            return fail(err, "--%s: there may be at most %d items", flag, items);
        int numbers = 0, wrong = !length;
        for (size_t at = 0; at < length && !wrong; numbers++) {
            char number[64];
            size_t digits = strcspn(text + at, ",:");
            snprintf(number, sizeof number, "%.*s", (int)min_size(digits, sizeof number - 1),
                     text + at);
            wrong = numbers == most || digits >= sizeof number ||
                    flags_double(number, &list->item[list->n][numbers]);
            at += digits;
            if (text[at] == ':' && ++at == length) wrong = 1;
        }
        if (wrong || numbers < least)
            return fail(err, "--%s: \"%.*s\" is not of the form %s", flag,
                        (int)min_size(length, 60), text, form);
        list->numbers[list->n++] = numbers;
        text += length;
        if (*text == ',' && !*++text)
            return fail(err, "--%s: an item %s is missing at the end", flag, form);
    }
    return 0;
}

#endif
