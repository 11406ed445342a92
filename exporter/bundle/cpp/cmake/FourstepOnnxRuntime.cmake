# Finds onnxruntime's C interface: onnxruntime_c_api.h and the library, as its releases bring them.
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
  HINTS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES lib lib64)
if(NOT ONNXRUNTIME_INCLUDE_DIR OR NOT ONNXRUNTIME_LIBRARY)
  message(FATAL_ERROR "onnxruntime is not there: unpack one of its releases and give -DONNXRUNTIME_ROOT=<its folder>")
endif()
if(NOT TARGET fourstep_onnxruntime)
  add_library(fourstep_onnxruntime SHARED IMPORTED GLOBAL)
  set_target_properties(fourstep_onnxruntime PROPERTIES
    IMPORTED_LOCATION "${ONNXRUNTIME_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}")
endif()
