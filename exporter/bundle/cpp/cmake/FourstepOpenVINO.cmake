# Finds OpenVINO: an installation that CMake knows, else that of Python's wheel (pip install openvino).
find_package(OpenVINO QUIET COMPONENTS Runtime)
if(NOT OpenVINO_FOUND)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(Python3_FOUND)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c
        "import importlib.util as u; s = u.find_spec('openvino'); print(s.submodule_search_locations[0] if s else '', end='')"
      OUTPUT_VARIABLE wheel)
    if(wheel)
      find_package(OpenVINO QUIET COMPONENTS Runtime PATHS ${wheel}/cmake NO_DEFAULT_PATH)
    endif()
  endif()
endif()
if(NOT OpenVINO_FOUND)
  message(FATAL_ERROR "OpenVINO is not there: pip install openvino, or -DOpenVINO_DIR=<its folder with OpenVINOConfig.cmake>")
endif()
